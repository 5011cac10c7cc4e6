"""Whether another process of this machine still runs."""

from __future__ import annotations

from pathlib import Path

import psutil

_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def is_running(pid: int, started: float | None = None) -> bool:
    """Whether that process runs.

    One that has ended does not, also where its parent has not asked for its exit code yet, or never will: in a
    container without an init, say. Nor does another that got its number since.

    Args:
        started: what `start_of` said of it; None takes any process of that number.
    """
    try:
        if psutil.Process(pid).status() in _GONE:
            return False
        return started is None or start_of(pid) == started
    except psutil.NoSuchProcess:
        return False


def start_of(pid: int) -> float:
    """When a process began, the same number for as long as it runs, whatever is done to the clock.

    On Linux ticks since the machine started: `psutil.Process.create_time` adds the moment of that, which the kernel
    tells again each time by the clock. Elsewhere seconds since the epoch.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    file = Path(f"/proc/{pid}/stat")
    try:
        fields = file.read_bytes().rpartition(b")")[2].split()  # what stands before may hold anything
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            raise psutil.NoSuchProcess(pid) from None
        return float(psutil.Process(pid).create_time())
    except ProcessLookupError:
        raise psutil.NoSuchProcess(pid) from None
    return float(fields[19])


def machine_start() -> str:
    """What tells this start of the machine from its others; empty where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
