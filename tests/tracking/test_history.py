"""The nights of a period, where something else went on too: sweeps, trainings that failed; and its page on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from flows.server.nights import reason_of
from gptpipe.config import PipelineConfig, SweepConfig, load_config
from gptpipe.dataset.dataset import Dataset
from gptpipe.launch.job import Job
from gptpipe.launch.torchrun import Watchers
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import SweepResult
from gptpipe.sweep.study import Row
from gptpipe.tracking.history import Entry, History, history
from gptpipe.tracking.history_page import history_lines, history_page
from gptpipe.tracking.report import report_of
from gptpipe.tracking.sweeps import SweepRun
from gptpipe.tracking.training import train_and_track
from tests.fixtures.browser import CHROMIUM, browser
from tests.fixtures.tracked import follow, tracking

pytestmark = pytest.mark.usefixtures("database")
LINE = {"step": 2, "tokens": 20, "train/loss": 5.0, "train/device_hours": 0.5, "train/active_seconds": 30.0}


def test_a_sweep_is_one_line_and_its_trainings_are_no_retrainings(dataset: Dataset) -> None:
    search = SweepConfig(search=["train.seed=1,2"], method="grid", name="seeds")
    sweep = SweepRun.begin(tracking(), Plan.of(PipelineConfig(), search), {})
    for number, status in enumerate(("FINISHED", "KILLED")):
        tags = sweep.child_tags(number, {"train.seed": number})
        follow(dataset, f"/trial-{number}", [LINE], status=status, tags=tags)
    row = Row(0, "finished", {"train.seed": 1}, 4.25, 2)
    sweep.write(SweepResult(Plan.of(PipelineConfig(), search), [row], {}))
    sweep.end("FINISHED")
    follow(dataset, "/alone", [LINE])
    told = history(tracking(), "gptpipe", 0.0)
    assert [(entry.verdict, entry.name) for entry in told.entries if entry.is_sweep] == [("sweep", "seeds")]
    assert "1 retraining (1 not registered), 1 sweep; 1.5 device hours, 1 min 30 s of training" in told.sentence
    assert any("2 trainings, best loss 4.2500 nats per token" in line for line in history_lines(told))
    assert len(told.entries) == 2


def test_a_training_that_failed_says_why(dataset: Dataset) -> None:
    failed = follow(dataset, "/failed", [LINE], status="FAILED", why="rank 0: out of memory")
    follow(dataset, "/again", [LINE], status="FAILED", why="no space left")
    follow(dataset, "/again", [], status="FINISHED")
    entries = history(tracking(), "gptpipe", 0.0).entries
    assert {(entry.verdict, entry.reason) for entry in entries} == {
        ("failed", "rank 0: out of memory"),
        ("not registered", ""),
    }
    assert report_of(tracking(), failed.run_id).sentence == "the training is failed: rank 0: out of memory"


def test_what_ends_a_training_is_kept_with_its_run(dataset: Dataset, tmp_path: Path) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("no such device\nand more")

    config = load_config(overrides=["train.steps=1", "model.n_layer=1", "model.n_embd=8", "model.n_head=1"])
    with pytest.raises(RuntimeError):
        train_and_track(config, tracking(), data=dataset.url, out=str(tmp_path), watchers=Watchers(on_start=fail))
    assert [entry.reason for entry in history(tracking(), "gptpipe", 0.0).entries] == ["no such device"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (Completed(name="Skipped", message="skipped: nothing is new"), "nothing is new"),
        (Failed(message="Flow run encountered an exception: UserError: no text"), "no text"),
    ],
)
def test_what_a_state_says_is_told_without_its_name(state: State, reason: str) -> None:
    assert reason_of(state) == reason


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_on_a_phone_a_date_stays_in_one_line_and_the_first_column_is_wide(tmp_path: Path) -> None:
    entry = Entry(
        1e9, "retrain", "", "skipped", "nothing is new: the texts and the settings are those of one that is done"
    )
    page = tmp_path / "nights.html"
    page.write_text(history_page(History("gptpipe", 0.0, (entry,))))
    with browser(tmp_path / "profile") as phone:
        phone.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        phone.open(page.as_uri())
        phone.wait_for("nothing is new")
        lines = phone.run("() => [...document.querySelectorAll('.date')].map(e => e.getClientRects().length)")
        width = "(name) => document.querySelector(name).getBoundingClientRect().width"
        assert phone.run(width, "tbody th") >= 160
        assert phone.run(width, ".why") >= 256
    assert lines == [1]
