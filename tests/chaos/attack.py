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

from tests.chaos.trouble import RATES
from tests.fixtures.bad_store import FAULTS

_PAUSE_SECONDS = 10
_BLOCK = b"\0" * (1 << 20)
CLOCK = {"forward": 3600, "back": -3600}  # seconds that it jumps by
SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}

_SERVERS = ("prefect", "mlflow", "s3", "postgres")
ALONE = [
    *(("kill", victim) for victim in ("flow", "server", "torchrun", "rank", "helper", "all")),
    *(("pause", victim) for victim in ("flow", "server", "torchrun", "rank", "all")),
    ("terminate", "flow"),
    ("interrupt", "flow"),
    ("full disk", "home"),
    ("full disk", "temporary folder"),
    *[("flip", "file")] * 5,  # one of many
    ("clock", "forward"),
    ("clock", "back"),
    ("memory", "the largest"),
    ("memory", "the largest"),
]
STORED = [
    *(("store", fault) for fault in FAULTS),
    *(("kill", victim) for victim in ("flow", "torchrun", "rank", "helper", "all")),
    ("terminate", "flow"),
]
LATER = [("kill", "all")] * 4 + [("pause", "all"), ("terminate", "flow"), ("interrupt", "flow"), ("full disk", "home")]
STACKED = [
    *((fault, victim) for fault in ("kill", "pause") for victim in (*_SERVERS, "worker", "flow", "rank", "all")),
    *[("full disk", "postgres"), ("full disk", "seaweedfs")] * 2,
    *(("network", kind) for kind in RATES),
]
_IN_TRAINING = ("torchrun", "rank")  # victims that are there in no other stage
CHANGE = "the first write"  # a mark that no log holds: of a file below the home


@dataclass(frozen=True)
class Attack:
    """One fault.

    Attributes:
        victim: a role of `Alone`, or a place whose disk is full. mark: the words of the log after which it happens.
        delay: seconds from there. chance: below 1; chooses among what there is then.
    """

    fault: str
    victim: str
    mark: str
    delay: float
    chance: float = 0.0

    @classmethod
    def drawn(cls, seed: int, marks: Sequence[str], faults: Sequence[tuple[str, str]], longest: float = 12.0) -> Attack:
        """The attack of a seed.

        Args:
            marks: of an undisturbed run, in their order. faults: with their victims.
            longest: seconds from the start to an attack that waits for no mark.
        """
        draw = random.Random(seed)
        fault, victim = draw.choice(faults)
        steps = [mark for mark in marks if mark.startswith("step-")]
        stages = ["training from"] if victim in _IN_TRAINING else sorted(set(marks) - set(steps))
        stages += ["step-"] if steps else []  # all of them together are as likely as one stage
        mark = draw.choice(stages)
        mark = draw.choice(steps) if mark == "step-" else mark
        most = 0.4 if mark == CHANGE else 1.5 if mark else longest
        return cls(fault, victim, mark, round(draw.uniform(0, most), 3), draw.random())

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


def flip(home: Path, chance: float) -> Path | None:
    """Change a byte of a file that is no database's, and no lock; the file, or None where there is none yet."""
    files = sorted(file for file in home.rglob("*") if file.is_file() and file.stat().st_size and _is_ours(file, home))
    if not files:
        return None
    draw = random.Random(chance)
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    # every file has a beginning and an end of its own kind
    place = draw.choice([draw.randrange(min(16, len(content))), -1 - draw.randrange(min(64, len(content)))])
    place = draw.choice([place, draw.randrange(len(content))])
    content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return file


def _is_ours(file: Path, home: Path) -> bool:
    is_database = file.relative_to(home).parts[0] == "prefect" or file.name.startswith("mlflow.db")
    return not is_database and file.suffix not in (".lock", ".pid")


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
