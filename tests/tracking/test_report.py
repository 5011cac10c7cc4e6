"""The report of a retraining, and of the nights of a period: what it says, read back from MLflow alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.cli.report import moment
from gptpipe.config import EvaluateConfig, PipelineConfig, load_config
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.drift import Measure
from gptpipe.errors import UserError
from gptpipe.evaluation.html import picture
from gptpipe.evaluation.once import evaluate_once
from gptpipe.generation.generate import Sample, Samples
from gptpipe.tracking.aliases import answer, rollback
from gptpipe.tracking.announcement import announce
from gptpipe.tracking.client import RunLink
from gptpipe.tracking.history import Entry, history
from gptpipe.tracking.plots import loss_curve
from gptpipe.tracking.registry import register
from gptpipe.tracking.report import Night, has_report, log_night, log_report, report_of
from gptpipe.tracking.report_page import report_page, report_text
from gptpipe.tracking.results import log_results
from tests.fixtures.tracked import follow, result_of, tracking, write_model

pytestmark = pytest.mark.usefixtures("database")
CONFIG = load_config(overrides=["promote.max_copied=0", "train.learning_rate=3e-4"])


def night(dataset: Dataset, folder: Path, kind: str, says: str, config: PipelineConfig = CONFIG) -> RunLink:
    """A retraining that ended: tracked, scored, registered, decided, announced."""
    folder.mkdir()
    write_model(folder / "step-00000012", dataset, kind)
    lines = [{"step": 6, "tokens": 600, "train/loss": 5.0}, {"step": 12, "tokens": 1200, "train/loss": 4.0}]
    lines[1] |= {"validation/loss": 4.5, "train/device_hours": 0.5, "train/active_seconds": 90.0}
    link = follow(dataset, str(folder), lines, config=config)
    result, _, _ = result_of(dataset, str(folder), 4.0)
    samples = [Samples([Sample("Every", f"Every{says}", [1])], None, result.best_checkpoint, 12)]
    out = str(folder.parent / "scores")
    evaluation = evaluate_once(result.best_checkpoint, data=dataset.url, config=EvaluateConfig(), out=out)
    log_results(link, result, evaluation, samples)
    registered = register(config, link, result, evaluation, samples[0], out=out)
    announce(registered, "champion", lambda *_: None)
    return link


@pytest.fixture
def nights(many_documents: Dataset, tmp_path: Path) -> list[RunLink]:
    return [
        night(many_documents, tmp_path / "first", "uniform", " word of the old"),
        night(many_documents, tmp_path / "second", "better", " word of the <b>new</b>"),
    ]


def test_the_report_holds_decision_samples_text_and_cost(nights: list[RunLink], tmp_path: Path) -> None:
    first, second = nights
    measure = Measure("text in all", "1 MB", "<2 MB>", "at least 50% of before", True)
    kept = Night("12 documents of 40 tokens new", [measure], ["tokenize"], 4_200_000)
    log_night(second, kept, already_done=False)
    log_night(second, Night(skipped=["tokenize", "train"]), already_done=True)  # the same night, asked for again
    report = report_of(tracking(), second.run_id)
    assert report.night == kept
    assert report.champion == "1"
    assert report.decision is not None
    assert report.decision.checks[0].passed
    assert (report.samples[0].before, report.samples[0].now) == (" word of the old", " word of the <b>new</b>")
    assert report.changed == "train.learning_rate=0.0003"
    assert report.losses["train/loss"] == [(600, 5.0), (1200, 4.0)]
    page, text = report_page(report), report_text(report)
    for shown in ("The decision, against version 1", "12 documents of 40 tokens new", "4.2 MB", "&lt;2 MB&gt;"):
        assert shown in page
    assert "&lt;b&gt;new" in page
    assert "<b>" not in page
    assert "http://" not in page.replace(tracking().pages, "")  # it opens offline
    assert text.startswith("models:/gptpipe/2 (champion now): better: ")
    assert "decided against version 1" in text
    assert not has_report(tracking(), second.run_id)
    log_report(tracking(), second.run_id, page)
    assert has_report(tracking(), second.run_id)
    earlier = report_of(tracking(), first.run_id)
    assert (earlier.champion, earlier.night) == ("", None)
    assert "What was done before" not in report_page(earlier)  # nobody kept it
    with tracking().reached() as client:
        client.log_text(first.run_id, "{", "night.json")
    assert report_of(tracking(), first.run_id).night is None


def test_a_flipped_bit_of_what_a_night_kept_shows_nothing_wrong(nights: list[RunLink], tmp_path: Path) -> None:
    link = nights[1]
    measure = Measure("text in all", "1 MB", "2 MB", "at least 50% of before", True)
    kept = Night("12 documents of 40 tokens new", [measure], ["tokenize"], 4_200_000)
    log_night(link, kept, already_done=False)
    client = tracking().connect()
    night_file = Path(client.download_artifacts(link.run_id, "night.json", str(tmp_path)))
    whole = night_file.read_bytes()
    for place in range(0, len(whole), 29):
        other = bytearray(whole)
        other[place] ^= 1 << place % 8
        client.log_text(link.run_id, other.decode("latin-1"), "night.json")
        assert report_of(tracking(), link.run_id).night in (None, kept)
    samples = max(item.path for item in client.list_artifacts(link.run_id, "samples"))
    table = json.loads(Path(client.download_artifacts(link.run_id, samples, str(tmp_path))).read_bytes())
    for damaged in ({**table, "data": [["one"]]}, {**table, "data": 7}, {**table, "columns": []}, []):
        client.log_dict(link.run_id, damaged, samples)
        assert report_of(tracking(), link.run_id).samples == []


def test_a_period_tells_which_became_champion_by_how_much_and_at_what_cost(nights: list[RunLink]) -> None:
    now = time.time()
    skipped = Entry(now - 60, "retrain", "", "skipped", "nothing is new", flow_run="7")
    told = history(tracking(), "gptpipe", now - 3600, [skipped, replace(skipped, flow_run="42")])
    verdicts = [entry.verdict for entry in told.entries]
    assert sorted(verdicts) == ["champion", "former champion", "skipped"]  # 42 is the flow run of the trainings
    assert [entry.reason for entry in told.entries if entry.verdict == "skipped"] == ["nothing is new"]
    assert told.entries[-1].comparison is not None
    assert told.entries[-1].comparison.difference < 0
    assert "3 retrainings" in told.sentence
    assert "1 device hours" in told.sentence
    assert history(tracking(), "gptpipe", now + 60).entries == ()
    rollback(PipelineConfig().promote, tracking())
    again = history(tracking(), "gptpipe", now - 3600)
    assert [entry.verdict for entry in again.entries] == ["champion", "rolled back"]
    assert all(entry.became_champion for entry in again.entries)


def test_a_version_that_a_person_approved_became_champion(many_documents: Dataset, tmp_path: Path) -> None:
    night(many_documents, tmp_path / "first", "uniform", "")
    asked = load_config(overrides=["promote.max_copied=0", "promote.approval_hours=1"])
    night(many_documents, tmp_path / "second", "better", "", asked)
    assert verdicts() == ["champion", "waits"]
    answer(asked.promote, tracking(), "2", agreed=True)
    assert verdicts() == ["former champion", "champion"]
    tracking().connect().set_registered_model_alias("gptpipe", "champion", "1")  # as any later version would take it
    assert verdicts() == ["champion", "former champion"]


def verdicts() -> list[str]:
    return [entry.verdict for entry in history(tracking(), "gptpipe", 0.0).entries]


def test_a_report_is_found_by_any_alias_of_the_configurations_model(nights: list[RunLink]) -> None:
    assert report_of(tracking(), "previous").name == report_of(tracking(), nights[0].run_id).name
    assert CliRunner().invoke(app, ["report", "previous"]).stdout.startswith("models:/gptpipe/1 (previous now)")
    other = CliRunner().invoke(app, ["report", "previous", "--set", "promote.model_name=another"])
    assert "no run has that name or id, and no version that alias" in str(other.exception)


def test_the_report_draws_training_and_validation_apart(nights: list[RunLink]) -> None:
    report = report_of(tracking(), nights[0].run_id)
    lines = [{"tokens": tokens, key: loss} for key, points in report.losses.items() for tokens, loss in points]
    assert picture(loss_curve(lines), "Losses by tokens") in report_page(report)  # with Prefect's legend


def test_the_command(nights: list[RunLink], tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["report", "--html", str(tmp_path / "one.html")])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.startswith("models:/gptpipe/2")
    assert "The decision, against version 1" in (tmp_path / "one.html").read_text()
    period = CliRunner().invoke(app, ["report", "--since", "2d", "--html", str(tmp_path / "all.html")])
    assert period.exit_code == 0, period.output
    assert len(period.stdout.splitlines()) == 4  # the sentence, two nights, the page
    page = (tmp_path / "all.html").read_text()
    assert "data:image/png;base64," in page
    assert page.count("<tr>") == 3
    told = json.loads(CliRunner().invoke(app, ["report", nights[0].run_id, "--json"]).stdout)
    assert told["decision"]["reason"] == "there was no champion"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--since", "30 days"], "not a period"),
        (["some", "--since", "30d"], "a run or a period"),
        (["--html", "page.pdf"], "not the name of a page"),
        (["no-such-run"], "no run has that name"),
        ([], "no training has ended"),
    ],
)
def test_bad_input_is_one_line(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["report", *options])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)


def test_a_period_is_a_span_or_a_date() -> None:
    assert moment("12h", 100_000.0) == 100_000 - 12 * 3600
    assert moment("2w", 2e6) == 2e6 - 14 * 86400
    assert moment("9" * 400 + "d", 2e6) == moment("0001-01-01", 2e6) == 0
    assert moment("2026-11-01", 0.0) == datetime(2026, 11, 1, tzinfo=UTC).timestamp()
