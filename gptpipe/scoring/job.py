"""What the launcher of an evaluation hands to its ranks: one small JSON file, and arrays beside it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from gptpipe import storage
from gptpipe.train.job import JOB, Outcome


class ScoringJob(BaseModel):
    """One evaluation on several ranks of this machine.

    Attributes:
        weights: URL. dataset: URL; empty where tokens.npy beside this file is scored.
        folder: the job's local folder.
        launcher: process id of the launcher; ranks end when it is gone.
    """

    model_config = ConfigDict(extra="forbid")

    module: ClassVar[str] = "gptpipe.scoring"
    save_timeout: ClassVar[float] = 10.0

    weights: str
    dataset: str
    split: str
    tokenizer: str
    precision: str
    device: str
    batch_tokens: int
    nproc: int
    threads: int
    folder: Path
    launcher: int

    def cancelled(self) -> str:
        return "cancelled; nothing of the evaluation is kept"

    def unsaved(self, reason: str) -> Outcome:
        return Outcome(status="preempted", reason=f"{reason}: the evaluation begins anew the next time")

    def write(self) -> Path:
        path = self.folder / JOB
        storage.write_bytes(str(path), self.model_dump_json(indent=2).encode())
        return path

    @classmethod
    def read(cls, path: Path) -> ScoringJob:
        return cls.model_validate_json(path.read_text("utf-8"))
