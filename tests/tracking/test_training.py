"""What a training says while it is followed."""

from __future__ import annotations

import logging
import platform
import re
from importlib.metadata import distributions
from pathlib import Path

import pytest

from gptpipe import progress
from gptpipe.config import load_config
from gptpipe.dataset.dataset import Dataset
from gptpipe.errors import Preempted
from gptpipe.launch.torchrun import Watchers
from gptpipe.tracking.follow import environment
from gptpipe.tracking.training import train_and_track
from tests.fixtures.tracked import tracking

TINY = ["model.n_layer=1", "model.n_embd=16", "model.n_head=2", "model.context_length=16", "train.steps=40"]
TINY += ["train.batch_size=2", "train.validate_every=0", "train.log_every=1", "train.threads=1"]


@pytest.mark.usefixtures("database")
@pytest.mark.slow
def test_a_training_that_goes_on_does_not_say_again_where_it_was(dataset: Dataset, tmp_path: Path) -> None:
    config, out = load_config(overrides=TINY), str(tmp_path / "out")
    seen: list[int] = []
    stopped = Watchers(
        on_metrics=lambda lines: seen.extend(line["step"] for line in lines), stop_reason=lambda: "enough" * bool(seen)
    )
    with pytest.raises(Preempted) as caught:
        train_and_track(config, tracking(), data=dataset.url, out=out, watchers=stopped)
    saved = int(re.findall(r"step (\d+)", str(caught.value))[0])
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    progress.log.addHandler(handler)
    progress.log.setLevel(logging.INFO)
    train_and_track(config, tracking(), data=dataset.url, out=out)
    progress.log.removeHandler(handler)
    steps = [int(re.findall(r"step (\d+)", line)[0]) for line in said]
    assert steps[-1] == 40
    assert min(steps) > saved


def test_the_environment_is_every_package_as_python_knows_it() -> None:
    first, *packages = environment().splitlines()
    assert first.startswith(f"# Python {platform.python_version()} on ")
    assert packages == sorted({f"{each.name}=={each.version}" for each in distributions()})
