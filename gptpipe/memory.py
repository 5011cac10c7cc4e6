"""Memory of this process and machine: freed blocks are kept, and processes killed for want of memory are counted."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_KILLS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to give freed memory back; True if it heard.

    By default it maps every block over 32 MB anew, and the system zeroes its pages: on two cores that took a
    third of a training step's time. The process's peak is the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def memory_kills() -> int:
    """How many processes the kernel, or this process's control group, has killed for want of memory, ever."""
    counts = [0]
    for path in map(Path, _KILLS):
        with suppress(OSError, ValueError):
            counts += [int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill ")]
    return sum(counts)


def memory_figures() -> str:
    """How much memory there is: of the machine, and of the control group where that has less."""
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free now"
    for path in map(Path, _LIMITS):
        with suppress(OSError, ValueError):
            if (limit := int(path.read_text())) < memory.total:
                text += f", this container may use {limit / 1e9:.1f}"
    return text
