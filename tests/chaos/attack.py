"""What is done to a run, to whom and when: drawn from a seed, so that a round can be done again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PAUSE_SECONDS = 10
_BLOCK = b"\0" * (1 << 20)
SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}

_FAULTS = [
    *(("kill", victim) for victim in ("flow", "server", "torchrun", "rank", "helper", "all")),
    *(("pause", victim) for victim in ("flow", "server", "torchrun", "rank", "all")),
    ("terminate", "flow"),
    ("interrupt", "flow"),
    ("full disk", "home"),
    ("full disk", "temporary folder"),
]
_IN_TRAINING = ("torchrun", "rank")  # victims that are there in no other stage


@dataclass(frozen=True)
class Attack:
    """One fault.

    Attributes:
        victim: a role of `Alone`, or a place whose disk is full. mark: the words of the log after which it happens.
        delay: seconds from there.
    """

    fault: str
    victim: str
    mark: str
    delay: float

    @classmethod
    def drawn(cls, seed: int, marks: Sequence[str]) -> Attack:
        """The attack of a seed.

        Args:
            marks: of an undisturbed run, in their order.
        """
        draw = random.Random(seed)
        fault, victim = draw.choice(_FAULTS)
        steps = [mark for mark in marks if mark.startswith("step-")]
        stages = ["training from", "step-"] if victim in _IN_TRAINING else [*(set(marks) - set(steps)), "step-"]
        mark = draw.choice(sorted(stages))
        mark = draw.choice(steps) if mark == "step-" else mark
        return cls(fault, victim, mark, round(draw.uniform(0, 1.5 if mark else 12), 2))

    def __str__(self) -> str:
        when = f"after {self.mark!r}" if self.mark else "after the start"
        return f"{self.fault} {self.victim}, {self.delay:g} s {when}"


def strike(processes: Sequence[psutil.Process], fault: str) -> None:
    """Send a signal to all of them at once; those that are paused go on after ten seconds."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(SIGNALS[fault])
    if fault == "pause":
        time.sleep(_PAUSE_SECONDS)
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)


def fill(folder: Path) -> Path:
    """Write until nothing more fits; the file to remove when there is to be room again."""
    file = folder / "filler"
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(_BLOCK)
    with suppress(OSError), file.open("ab", buffering=0) as filler:
        while True:
            filler.write(b"\0" * 512)
    os.sync()
    return file
