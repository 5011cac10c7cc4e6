"""How often a training is tried again, and what an attempt goes on from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from gptpipe import storage
from gptpipe.errors import Damaged
from gptpipe.launch.job import METRICS, OUTCOME, Job, Outcome
from gptpipe.launch.metrics import keep_until, read_line
from gptpipe.weights.checkpoint import STEP, intact_checkpoint, open_checkpoint

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
    return [values for line in content.splitlines() if (values := read_line(line))]


def ended_training(training: str) -> tuple[Outcome | None, list[str]]:
    """The outcome of a training that is done, and which of its checkpoints must be made again.

    Those are the best or the last one if it is damaged, and all after it: training passes by there once more. A
    finished training whose last checkpoint is gone is not done.
    """
    ended = Outcome.read(storage.join(training, OUTCOME))
    if ended is None or ended.status != "finished" or intact_checkpoint(ended.last_checkpoint(training)) is None:
        return None, []
    for url in dict.fromkeys([ended.best_checkpoint(training), ended.last_checkpoint(training)]):
        try:
            if (checkpoint := open_checkpoint(url)) is None:
                raise Damaged("the checkpoint is gone", where=url)
            checkpoint.check()
        except Damaged as error:
            log.warning("%s: %s; what is damaged is trained again", error.where, error.message)
            names = [name for name in storage.list_folders(training) if STEP.match(name)]
            return ended, [storage.join(training, name) for name in names if step_of(name) >= step_of(url)]
    return ended, []
