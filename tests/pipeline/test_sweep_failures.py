"""Failures of a sweep's trainings: scattered ones end nothing, and where nothing comes of any, the sweep ends.

What a training does is written down here; the study, MLflow and all that the sweep makes of it are real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gptpipe.config import PipelineConfig, SweepConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import Preempted, UserError
from gptpipe.launch.torchrun import Watchers
from gptpipe.launch.training import TrainResult
from gptpipe.pipeline import sweep as sweeps
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import SweepResult
from gptpipe.tracking.client import RunLink
from tests.fixtures.datasets import Sample
from tests.fixtures.tracked import tracking

SEARCH = ["model.n_embd=32,64,96", "train.learning_rate=1e-4,1e-3,1e-2"]
BASE = PipelineConfig.model_validate({"train": {"steps": 40, "warmup_steps": 2}})

Outcome = tuple[TrainResult, RunLink | None]


def training(fails: Callable[[int], bool]) -> Callable[..., Outcome]:
    """One that fails by its number; the others' losses fall with their numbers."""

    def train(config: PipelineConfig, *_: Any, watchers: Watchers, tags: Mapping[str, str], **more: Any) -> Outcome:
        number = int(tags["trial"])
        if fails(number):
            raise UserError("the disk is full", where="a disk", hint="make room")
        loss = 4 - number / 10
        for step in range(config.train.validate_every, BASE.train.steps + 1, config.train.validate_every):
            watchers.on_metrics([{"step": step, "validation/loss": loss}])
            if step < BASE.train.steps and watchers.stop_reason():
                raise Preempted(watchers.stop_reason())
        name = f"training-{number}"
        last, steps = f"{name}/checkpoints/step-{BASE.train.steps}", BASE.train.steps
        done = TrainResult(name, name, last, last, "", steps, 0, loss, loss, None, already_done=False)
        return done, None

    return train


@pytest.fixture
def sweep(
    database: None, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Callable[[int], bool]], SweepResult]:
    """Makes a sweep whose trainings fail by their number."""
    store = str(tmp_path / "store")
    places = sweeps.Places(
        sample.dataset.url, "", store, f"sqlite:///{tmp_path / 'sweeps.db'}", tracking(), TokenCache(limit=1 << 20)
    )

    def run(method: str, fails: Callable[[int], bool]) -> SweepResult:
        monkeypatch.setattr(sweeps, "train_and_track", training(fails))
        plan = Plan.of(BASE, SweepConfig(search=SEARCH, method=method))  # type: ignore[arg-type]
        return sweeps.sweep(plan, places)[0]

    return run


def test_scattered_failures_end_no_halving(sweep: Callable[[str, Callable[[int], bool]], SweepResult]) -> None:
    result = sweep("asha", lambda number: number % 2 == 0)
    assert [row.number for row in result.rows if row.state == "failed"] == [0, 2, 4, 6, 8]
    assert [row.number for row in result.rows if row.state == "finished"] == [7]
    assert result.best == result.rows[7]


def test_a_sweep_of_which_nothing_comes_ends_at_the_third_and_goes_on_once_the_reason_is_gone(
    sweep: Callable[[str, Callable[[int], bool]], SweepResult],
) -> None:
    with pytest.raises(UserError, match="the disk is full"):
        sweep("grid", lambda number: True)
    result = sweep("grid", lambda number: False)
    assert [row.state for row in result.rows] == ["finished"] * 9
    assert result.best == result.rows[8]
