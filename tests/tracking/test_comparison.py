"""Runs side by side, in a terminal and as a page: which is better and how surely, and what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.config import EvaluateConfig, PipelineConfig, load_config
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset
from gptpipe.errors import UserError
from gptpipe.evaluation.evaluate import evaluate
from gptpipe.evaluation.once import evaluate_once
from gptpipe.tracking.comparison import curves, score_again, side_by_side
from gptpipe.tracking.comparison_page import comparison_page
from gptpipe.tracking.plots import loss_curves
from gptpipe.tracking.registry import register
from gptpipe.tracking.results import log_results
from tests.fixtures.tracked import follow, result_of, tracking, write_model

pytestmark = pytest.mark.usefixtures("database")


def finished(dataset: Dataset, folder: Path, kind: str, config: PipelineConfig, **scored: int) -> str:
    """A training that ended, with its evaluation; the run's id."""
    folder.mkdir()
    write_model(folder / "step-00000012", dataset, kind)
    line = {"step": 12, "tokens": 1200, "train/tokens": 1200.0, "train/loss": 4.0, "train/active_seconds": 6.0}
    line |= {"train/device_hours": 0.002, "train/flops": 1.5e12, "train/memory_mb": 950.0, "validation/loss": 4.5}
    first = {"step": 6, "tokens": 600, "train/loss": 5.0}
    link = follow(dataset, str(folder), [first, line], config=config)
    result, _, samples = result_of(dataset, str(folder), 4.0)
    evaluation = evaluate_once(
        result.best_checkpoint, data=dataset.url, config=EvaluateConfig(**scored), out=str(folder / "scores")
    )
    log_results(link, result, evaluation, samples)
    if kind == "better":
        register(config, link, result, evaluation, samples[-1], out=str(folder / "scores"))
    return link.run_id


@pytest.fixture
def runs(many_documents: Dataset, tmp_path: Path) -> list[str]:
    return [
        finished(many_documents, tmp_path / "first", "uniform", load_config(overrides=["train.learning_rate=1e-3"])),
        finished(
            many_documents, tmp_path / "second", "better", load_config(overrides=["train.seed=7", "train.nproc=2"])
        ),
    ]


def test_the_table_says_what_differs_and_which_is_better(
    many_documents: Dataset, runs: list[str], tmp_path: Path
) -> None:
    compared = side_by_side(tracking(), runs)
    rows = compared.rows
    assert rows["train.learning_rate"] == ["0.001", str(PipelineConfig().train.learning_rate)]
    assert rows["train.seed"] == ["1337", "7"]
    assert not {"train.nproc", "model.n_layer", "train.steps"} & rows.keys()  # the same, or of no weight
    losses = [evaluate(str(tmp_path / name / "step-00000012"), data=many_documents.url) for name in ("first", "second")]
    for shown, evaluation in zip(rows["cross-entropy, nats per token"], losses, strict=True):
        assert shown.split(" ± ")[0] == f"{evaluation.cross_entropy:.4f}"
    difference = losses[1].cross_entropy - losses[0].cross_entropy
    assert rows["difference from the first"] == ["–", f"{difference:+.4f}"]
    assert rows["tokens/s"] == ["200", "200"]
    assert rows["FLOPs"] == ["1.5e+12", "1.5e+12"]
    assert rows["memory per rank, GB"] == ["0.95", "0.95"]
    assert compared.sentence.startswith(f"{compared.columns[1].name} is best; against {compared.columns[0].name}: ")
    assert "on the same documents" in compared.sentence
    assert side_by_side(tracking(), runs[::-1]).sentence.endswith("is best: none is better on the same documents")
    assert list(rows)[:2] == ["run", "train.learning_rate"]
    alone = side_by_side(tracking(), runs[:1])
    assert alone.sentence == f"{alone.columns[0].name}: one run has nothing to compare with; name another one too"
    assert alone.rows["tokens/s"] == ["200"]


def test_a_run_is_found_by_id_beginning_name_training_and_alias(runs: list[str]) -> None:
    first, second = runs
    name = tracking().connect().get_run(second).info.run_name
    tracking().connect().set_registered_model_alias("gptpipe", "previous", "1")
    for each in (second, second[:9], name, "champion", "previous", "models:/gptpipe/1", "models:/gptpipe@champion"):
        assert [column.run_id for column in side_by_side(tracking(), [first, each]).columns] == [first, second], each
    assert side_by_side(tracking(), ["secon"]).columns[0].run_id == second  # the beginning of its folder's name
    assert {column.run_id for column in side_by_side(tracking(), []).columns} == set(runs)
    with pytest.raises(UserError, match="no run has that name or id"):
        side_by_side(tracking(), ["nobody"])
    with pytest.raises(UserError, match="2 runs are called that"):
        side_by_side(tracking(), [""])
    with pytest.raises(UserError, match="not found"):
        side_by_side(tracking(), ["models:/nobody@champion"])


def test_losses_on_other_text_are_not_compared(many_documents: Dataset, runs: list[str], tmp_path: Path) -> None:
    part = finished(many_documents, tmp_path / "part", "worse", load_config(), max_tokens=64)
    compared = side_by_side(tracking(), [runs[0], part])
    assert compared.columns[1].against is None
    assert compared.sentence.startswith("scored on different text")
    again = side_by_side(tracking(), [runs[0], part], score_again(str(tmp_path / "again"), TokenCache()))
    own = evaluate(str(tmp_path / "part" / "step-00000012"), data=many_documents.url).cross_entropy
    first = evaluate(str(tmp_path / "first" / "step-00000012"), data=many_documents.url).cross_entropy
    against = again.columns[1].against
    assert against is not None
    assert against.difference == pytest.approx(own - first, abs=1e-6)
    assert against.interval is not None
    assert against.interval.low < against.difference < against.interval.high
    assert again.sentence.endswith("is best: none is better on the same documents")
    for file in (tmp_path / "second" / "scores").glob("*.parquet"):
        file.unlink()
    assert side_by_side(tracking(), runs).columns[1].against is None


def test_the_legend_says_which_line_is_training_and_which_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "legend", lambda axes, **_: labels.extend(axes.get_legend_handles_labels()[1]))
    loss_curves({"a run": {"train/loss": [(600, 5.0), (1200, 4.0)], "validation/loss": [(1200, 4.5)]}})
    assert labels == ["a run (4.500)", "thin: training", "with points: validation"]


def test_the_page_and_the_command(runs: list[str], tmp_path: Path) -> None:
    compared = side_by_side(tracking(), runs)
    losses = curves(tracking(), compared)
    assert losses[runs[0]]["validation/loss"] == [(1200, 4.5)]
    assert losses[runs[0]]["train/loss"] == [(600, 5.0), (1200, 4.0)]
    odd = replace(compared, columns=[replace(compared.columns[0], name="<b>&"), *compared.columns[1:]])
    page = comparison_page(odd, losses)
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "data:image/png;base64," in page
    place = tmp_path / "page.html"
    answer = CliRunner().invoke(app, ["compare", *runs, "--html", str(place)])
    assert answer.exit_code == 0, answer.output
    assert "is best; against" in answer.output
    assert "train.learning_rate" in answer.output
    assert compared.columns[0].name in place.read_text("utf-8")
