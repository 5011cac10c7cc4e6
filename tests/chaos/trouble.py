"""A clock that jumps and memory that runs short, for one command and what it starts."""

from __future__ import annotations

import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from gptpipe.launch.memory_kills import memory_kills

_CLOCK = Path(__file__).with_name("clock.c")
GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1
_TO_SPARE = 8 << 20
_SHORT_SECONDS = 10.0


def clock(folder: Path) -> dict[str, str]:
    """The environment of a command whose clock `move_clock` moves; it is compiled in that folder."""
    library, seconds = folder / "clock.so", folder / "clock"
    seconds.write_bytes(struct.pack("<q", 0))
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_CLOCK)], check=True)
    return {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(seconds)}


def move_clock(folder: Path, seconds: int) -> None:
    """Put the clock of what runs there forward, or back."""
    with (folder / "clock").open("r+b") as file:  # in place: it is mapped
        file.write(struct.pack("<q", seconds))


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
