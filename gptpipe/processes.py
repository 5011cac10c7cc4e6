"""Whether another process of this machine still runs."""

from __future__ import annotations

import psutil

_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def is_running(pid: int, started: float | None = None) -> bool:
    """Whether that process runs.

    One that has ended does not, also where its parent has not asked for its exit code yet, or never will: in a
    container without an init, say. Nor does another that got its number since.

    Args:
        started: when it began, as `psutil.Process.create_time` has it; None takes any process of that number.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in _GONE:
            return False
        return started is None or abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
