"""Processes that were killed for lack of memory: how many, and how much memory there is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_kills(counters: Iterable[str | Path] = _COUNTERS) -> int:
    """What the counters of the kernel and of this process's control group add up to; it grows with every such kill."""
    total = 0
    for path in counters:
        with suppress(OSError, ValueError):
            lines = Path(path).read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


def memory_figures() -> str:
    """How much memory there is: of the machine, and of the control group where that has less."""
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free now"
    for path in map(Path, _LIMITS):
        with suppress(OSError, ValueError):
            if (limit := int(path.read_text())) < memory.total:
                text += f", this container may use {limit / 1e9:.1f}"
    return text
