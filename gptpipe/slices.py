"""Short time slices for threads that wait for one another, so that they run again as soon as they are woken.

The threads of one computation meet hundreds of times a step. Beside other work on the same cores a woken thread waits
until the other program's time slice is over, a millisecond or three each time, although it is owed its share of the
core. Since Linux 6.12 a program may ask for shorter slices of its own, with no privilege: its share stays what it was,
but it is given in smaller pieces, and a thread with the shorter slice goes first (sched(7); EEVDF, Stoica and
Abdel-Wahab 1995).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

_SECONDS = 1e-4  # the shortest that Linux takes
# numbers of sched_setattr and sched_getattr
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
_SHARED = (0, 3)  # SCHED_OTHER and SCHED_BATCH; others have no slices


def shorten_slices() -> bool:
    """Ask for short slices for all threads of this process, and those that they start. Nothing else changes.

    Returns:
        Whether Linux took it; an older one takes it and does nothing. Elsewhere nothing is asked.
    """
    calls = _CALLS.get(os.uname().machine) if sys.platform == "linux" else None
    if calls is None:
        return False
    libc, taken = ctypes.CDLL(None), True
    threads = [0]
    with suppress(OSError):
        threads = [int(each.name) for each in Path("/proc/self/task").iterdir()]
    for thread in threads:
        buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
        if libc.syscall(calls[1], thread, buffer, _ATTRIBUTES.size, 0):
            taken = False
            continue
        _, policy, _, nice, priority, *_ = _ATTRIBUTES.unpack(buffer.raw)
        if policy not in _SHARED:
            continue
        wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, nice, priority, int(_SECONDS * 1e9), 0, 0)
        taken &= libc.syscall(calls[0], thread, ctypes.create_string_buffer(wanted, _ATTRIBUTES.size), 0) == 0
    return taken


def slice_seconds() -> float | None:
    """The slice of the calling thread in seconds, as Linux says it; None where it does not."""
    calls = _CALLS.get(os.uname().machine) if sys.platform == "linux" else None
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if calls is None or ctypes.CDLL(None).syscall(calls[1], 0, buffer, _ATTRIBUTES.size, 0):
        return None
    return _ATTRIBUTES.unpack(buffer.raw)[5] / 1e9 or None
