"""What the launcher of an evaluation hands to its ranks: one small JSON file, and arrays beside it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gptpipe.launch.job import JobFile, Outcome


class ScoringJob(JobFile):
    """One evaluation on several ranks of this machine.

    Attributes:
        weights: URL. dataset: URL; empty where tokens.npy beside this file is scored.
        cache: local folder for decoded tokens. cache_bytes: what they may take there.
        folder: the job's local folder.
        launcher: process id of the launcher; ranks end when it is gone.
    """

    module: ClassVar[str] = "gptpipe.evaluation"
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
    cache: Path
    cache_bytes: int

    def cancelled(self) -> str:
        return "cancelled; nothing of the evaluation is kept"

    def unsaved(self, reason: str) -> Outcome:
        return Outcome(status="preempted", reason=f"{reason}: the evaluation begins again the next time")
