"""How often a training is tried again, and what an attempt goes on from."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from gptpipe import storage
from gptpipe.launch.job import METRICS, Job
from gptpipe.launch.metrics import keep_until

log = logging.getLogger(__name__)


TRIES = 3  # attempts without a new checkpoint after which a failing training has failed


@dataclass
class Tries:
    """Attempts that have failed since the last new checkpoint."""

    failures: int = 0
    reached: str = ""

    def are_spent(self, newest: str, *, failed: bool = True) -> bool:
        """Count an attempt that has ended; whether there may be no other.

        Args:
            newest: the checkpoint that another would go on from.
        """
        self.failures = self.failures + 1 if newest == self.reached and failed else 1
        self.reached = newest
        return self.failures >= TRIES


def place_of(checkpoint: str) -> str:
    """Where an attempt goes on, in a person's words."""
    return f"step {step_of(checkpoint):,}" if checkpoint else "the beginning"


def step_of(checkpoint: str) -> int:
    return int(checkpoint.rsplit("-", 1)[-1]) if checkpoint else 0


def metrics_before(job: Job) -> bytes:
    """The lines of metrics.jsonl up to the step that a job goes on from."""
    if not job.resume:
        return b""
    try:
        return keep_until(storage.read_bytes(storage.join(job.training, METRICS)), step_of(job.resume))
    except FileNotFoundError:
        log.warning("no metrics.jsonl in %s: the curve begins at step %d", job.training, step_of(job.resume))
        return b""


def records_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]
