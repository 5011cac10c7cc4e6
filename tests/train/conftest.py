"""A tiny dataset and trainings on it as killable processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize

DRIVER = Path(__file__).with_name("driver.py")
MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "dropout": 0.1}
TRAIN = {
    "steps": 24,
    "batch_size": 8,
    "warmup_steps": 4,
    "learning_rate": 3e-3,
    "validate_every": 8,
    "validate_tokens": 128,
    "checkpoint_every": 3,
    "log_every": 1,
    "precision": "float32",
    "threads": 1,
}


def text_of(number: int) -> str:
    """The text of a document of `dataset`."""
    return " ".join(f"word{(number * j) % 97} and {j}" for j in range(60))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of a few thousand tokens of this project's own text."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        (folder / f"{i:03}.txt").write_text(text_of(i))
    return tokenize(DataConfig(corpus=[str(folder)], validation=0.2), str(tmp_path_factory.mktemp("datasets"))).dataset


@dataclass
class Training:
    """One training in `folder`; `start` may be called again after a kill, as a person would.

    Attributes:
        absent: of its nodes, how many never come.
    """

    folder: Path
    data: str
    train: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    absent: int = 0
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        given = {
            "model": {**MODEL, **self.model},
            "train": {**TRAIN, **self.train},
            "data": self.data,
            "out": self.out or str(self.folder / "out"),
            "absent": self.absent,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(given))
        environment = {**os.environ, "GPTPIPE_HOME": str(self.folder / "home")}
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(self.folder / "settings.json")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def finish(self) -> dict[str, Any]:
        return self.finish_and_listen()[0]

    def finish_and_listen(self) -> tuple[dict[str, Any], str]:
        """The result, and what was logged on the way."""
        process = self.start()
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        result: dict[str, Any] = json.loads(out)
        return result, err

    def family(self) -> list[psutil.Process]:
        """The launcher, torchrun and the ranks that run now, parents first."""
        found = []
        for process in self.started:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    def ranks(self) -> list[psutil.Process]:
        return [
            process
            for process in self.family()
            if "gptpipe.train" in _command(process)
            and "-m" in _command(process)
            and "torch.distributed.run" not in _command(process)
        ]

    def steps_logged(self) -> int:
        lines: list[str] = []
        for place in ("home/jobs", "out"):  # from the one into the other when it has finished
            for file in self.folder.glob(f"{place}/*/metrics.jsonl"):
                with suppress(FileNotFoundError):
                    lines += file.read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        until = time.monotonic() + timeout
        while self.steps_logged() < step:
            process = self.started[-1]
            assert process.poll() is None or self.steps_logged() >= step, process.communicate()
            assert time.monotonic() < until, f"step {step} was not reached"
            time.sleep(0.01)

    def weights(self) -> dict[str, bytes]:
        """The final weights and moments, as bytes."""
        steps = {**TRAIN, **self.train}["steps"]
        (folder,) = (self.folder / "out").glob(f"*/step-{steps:08d}")
        return {name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


NewTraining = Callable[..., Training]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL to all of them, as near to at once as can be, and wait until they are gone."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=20)


@pytest.fixture
def new_training(tmp_path: Path, dataset: str) -> Iterator[NewTraining]:
    """Makes trainings and sees to it that none outlives the test."""
    made: list[Training] = []

    def make(name: str, **given: Any) -> Training:
        made.append(Training(tmp_path / name, given.pop("data", dataset), **given))
        return made[-1]

    yield make
    for training in made:
        kill(training.family())
        for process in training.started:
            process.communicate()
