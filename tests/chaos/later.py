"""The commands that come after a training: each begins in the same home, with two trainings and one that waits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.chaos.alone import RUN, Alone, Try, marks_of
from tests.chaos.attack import CHANGE, LATER, Attack


def _training(steps: int, *more: str) -> tuple[str, ...]:
    """A run whose model is the better the more steps it has."""
    often = ("train.checkpoint_every=20", "train.learning_rate=0.01", "data.validation=0.5")
    settings = (f"train.steps={steps}", *often, *more)
    return (*RUN, *(word for setting in settings for word in ("--set", setting)))


_FIRST, _SECOND, _UNUSED = _training(40), _training(160), _training(60, "promote.register_model=false")
_WAITS = _training(400, "promote.approval_hours=0.0001")
_SEARCH = ("--search", "train.learning_rate=0.001,0.01", "--trials", "2", "--name", "chaos")
COMMANDS: dict[str, Sequence[str]] = {
    "rollback": ("rollback", "--to", "1"),
    "approve": ("approve", "3", "--note", "as the test will have it"),
    "refuse": ("approve", "3", "--refuse"),
    "clean": ("clean", "--older-than", "0", "--apply"),
    "report": ("report", "--html", "report.html"),
    "gate": _training(640),
    "sweep": ("sweep", *_SEARCH, *_FIRST[1:]),
}
_MARKS_OF_THE_GATE = ("evaluate:", "sample:", "register:", "report:")


@dataclass
class Later:
    """A home as it is before each round, and what each command makes of it undisturbed.

    Attributes:
        undisturbed: by command, its outcome. seconds: that it took.
    """

    folder: Path
    undisturbed: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def _place(self) -> Path:
        """Always the same: MLflow's database holds its artifacts' places."""
        return self.folder / "place"

    @property
    def _kept(self) -> Path:
        return self.folder / "kept"

    def prepare(self) -> None:
        """Three versions, the second champion, the third waiting; and a training that nothing refers to."""
        run = Alone(self._place)
        run.prepare()
        for words in (_FIRST, _SECOND, _WAITS, _UNUSED):
            run.words = words
            _well(run)
        client = MlflowClient(tracking_uri=f"sqlite:///{run.home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("gptpipe")
        assert experiment is not None
        newest = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
        client.delete_run(newest.info.run_id)
        aliases = {alias: str(version) for alias, version in client.get_registered_model("gptpipe").aliases.items()}
        assert aliases == {"champion": "2", "previous": "1", "challenger": "3"}, aliases
        self._place.rename(self._kept)
        for name in COMMANDS:
            run = self.begin(name)
            began = time.monotonic()
            said = _well(run).said
            self.seconds[name] = time.monotonic() - began
            self.undisturbed[name] = run.outcome()
            seen = marks_of("\n".join(said))
            self.marks[name] = [mark for mark in _MARKS_OF_THE_GATE if mark in seen] if name == "gate" else ["", CHANGE]

    def begin(self, name: str) -> Alone:
        """A command that has not run yet, in a home where no other has."""
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._kept, self._place, symlinks=True)
        return Alone(self._place, COMMANDS[name])

    def attack(self, name: str, seed: int) -> Attack:
        return Attack.drawn(seed, self.marks[name], LATER, self.seconds[name])


def _well(run: Alone) -> Try:
    run.tries.clear()
    run.run()
    done = run.tries[-1]
    assert done.code == 0, (run.words, done.said)
    return done
