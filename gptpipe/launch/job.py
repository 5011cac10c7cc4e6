"""What the launcher hands to the ranks, and what they hand back: two small JSON files in the job's folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gptpipe import storage
from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.dataset.news import read_stretches
from gptpipe.weights.checkpoint import newest_checkpoint, step_name

JOB, METRICS, OUTCOME = "job.json", "metrics.jsonl", "outcome.json"
RANK_LINE = "\x1e"  # begins every line that a rank says to whoever watches; torchrun shares its stdout


class JobFile(BaseModel):
    """What ranks are told, as a file in the job's folder."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    folder: Path
    launcher: int

    @property
    def place(self) -> Path:
        """Where the file is."""
        return self.folder / JOB

    def write(self) -> Path:
        storage.write_bytes(str(self.place), self.model_dump_json(indent=2).encode())
        return self.place

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text("utf-8"))


class Job(JobFile):
    """One start of one training.

    Attributes:
        training: URL of the training's folder, where checkpoints go.
        dataset: URL of the dataset.
        folder: the job's local folder: this file, metrics.jsonl, outcome.json, the ranks' pids.
        cache: local folder for decoded tokens. cache_bytes: what they may take there.
        init: checkpoint whose weights training starts from; empty is random weights.
        news: file of what is new in the training split since those weights' own dataset, and its SHA-256; empty where
            all samples are drawn alike.
        resume: checkpoint that training goes on from; empty is from the beginning.
        launcher: process id of the launcher; ranks end when it is gone.
        called: when this start was asked for, in seconds since 1970.
    """

    id: str
    model: ModelConfig
    train: TrainConfig
    training: str
    dataset: str
    cache: Path
    cache_bytes: int
    init: str = ""
    news: str = ""
    news_sha256: str = ""
    resume: str = ""
    called: float = Field(default_factory=time.time)

    module: ClassVar[str] = "gptpipe.train"  # what a rank runs

    @property
    def nproc(self) -> int:
        return self.train.nproc

    @property
    def threads(self) -> int:
        return self.train.threads

    @property
    def save_timeout(self) -> float:
        return self.train.save_timeout

    def read_news(self) -> np.ndarray | None:
        """The stretches of the training split's stream that are new; None where all samples are drawn alike."""
        return read_stretches(self.news, self.news_sha256) if self.news else None

    def cancelled(self) -> str:
        """What is said of one that was cancelled."""
        return f"cancelled; the last committed checkpoint in {self.training} stands; run it again to go on from there"

    def unsaved(self, reason: str) -> Outcome:
        """The outcome of one that was asked to stop, and ended without one of its own."""
        newest = newest_checkpoint(self.training)
        reason = f"{reason}, and not saved within train.save_timeout"
        return Outcome(status="preempted", reason=reason, step=newest.step if newest else 0)


class Outcome(BaseModel):
    """How a training ended.

    `finished`: all steps done. `preempted`: stopped early, the newest checkpoint goes on. `user_error`: what was
    given cannot be trained. `failed`: anything else, with the reason.
    """

    status: Literal["finished", "preempted", "failed", "user_error"]
    reason: str = ""
    error: dict[str, str] | None = None  # of a user error: message, where, hint
    damaged: bool = False  # that error is a file of ours that is not as it was written
    traceback: str = ""
    killed: bool = False  # by a signal that nobody here sent: the same again may well go well
    step: int = 0
    tokens: int = 0
    checkpoint: str = ""
    best_step: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None

    def last_checkpoint(self, training: str) -> str:
        """URL of the last one in the training's folder, which may have been copied or moved since; empty is none."""
        name = self.checkpoint.rpartition("/")[2]
        return storage.join(training, name) if name else ""

    def best_checkpoint(self, training: str) -> str:
        """URL of the best one in the training's folder; of the last one where none was validated."""
        return storage.join(training, step_name(self.best_step)) if self.best_step else self.last_checkpoint(training)

    def write(self, url: str) -> None:
        storage.write_result(url, self.model_dump(mode="json"))

    @classmethod
    def read(cls, url: str) -> Outcome | None:
        """The outcome at a URL, or None when nothing ended there, or nobody knows how."""
        return storage.read_result(url, TypeAdapter(cls))
