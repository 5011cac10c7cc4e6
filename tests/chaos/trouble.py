"""A clock that jumps, memory that runs short, a disk that is small, a network that is slow or cut."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptpipe.launch.memory_kills import memory_kills

_CLOCK = Path(__file__).with_name("clock.c")
GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1
_TO_SPARE = 8 << 20
_SHORT_SECONDS = 10.0
_NETWORK = "CHAOS_NETWORK"
# what passes in a second: a short queue drops the rest, so packets are lost too
RATES = {"slow": "2mbit", "cut": "8bit"}


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


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of its own below a folder, whose content goes along; nothing may run there at the end, when it is gone."""
    content = folder.with_name(f"{folder.name}-content")
    folder.rename(content)
    folder.mkdir()
    shutil.copystat(content, folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        subprocess.run(["cp", "--archive", f"{content}/.", str(folder)], check=True)  # with the owners of the files
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enter_own_network() -> None:
    """Begin this program again in a network of its own, so that `network` disturbs nobody else."""
    if _NETWORK not in os.environ:
        os.environ[_NETWORK] = "own"
        begin = 'ip link set lo mtu 1500 up && exec "$@"'
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", begin, "sh", *sys.orig_argv])


def network(kind: str, seconds: float) -> None:
    """Slow or cut for so long, between all that runs in this network."""
    assert _NETWORK in os.environ, "it would disturb the whole machine"
    rate = ["rate", RATES[kind], "burst", "4kb", "latency", "400ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", *rate], check=True)
    time.sleep(seconds)
    subprocess.run(["tc", "qdisc", "delete", "dev", "lo", "root"], check=True)
