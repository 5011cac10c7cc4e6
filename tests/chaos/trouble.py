"""A clock that jumps and memory that runs short, for one command and what it starts."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from gptpipe.launch.memory_kills import memory_kills

FAKE_CLOCK = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")  # of Debian's package libfaketime
GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1
_TO_SPARE = 8 << 20
_SHORT_SECONDS = 10.0


def clock(file: Path) -> dict[str, str]:
    """The environment of a command whose clock is ahead of the machine's by the seconds that a file holds.

    What measures time, as a monotonic clock, goes on, and files keep the machine's time.
    """
    assert FAKE_CLOCK.exists(), "a clock that jumps needs Debian's package libfaketime"
    file.write_text("+0")
    return {
        "LD_PRELOAD": str(FAKE_CLOCK),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def group(name: str) -> list[str]:
    """Words before a command that put it into a control group of its own."""
    folder = GROUPS / name
    folder.mkdir(exist_ok=True)
    return ["/bin/sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]


def take_memory(name: str) -> bool:
    """Leave a control group a few megabytes more than it has, until the kernel has killed in it: ten seconds at most.

    Returns:
        Whether it has killed.
    """
    folder = GROUPS / name
    before, until = memory_kills(), time.monotonic() + _SHORT_SECONDS
    limit = int((folder / "memory.usage_in_bytes").read_text()) + _TO_SPARE
    (folder / "memory.limit_in_bytes").write_text(str(limit))
    while memory_kills() == before and time.monotonic() < until:
        time.sleep(0.05)
    (folder / "memory.limit_in_bytes").write_text("-1")
    return memory_kills() > before


def remove_group(name: str) -> None:
    """Once nothing runs in it."""
    with suppress(OSError):
        (GROUPS / name).rmdir()
