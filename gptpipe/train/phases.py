"""Where the time from the call of a training to its first step goes."""

from __future__ import annotations

import time

import psutil

from gptpipe.launch.job import Job


class Phases:
    """Seconds of each phase of a start, in their order.

    Args:
        called: when the training was called. launched: when this rank's launcher started torchrun.
    """

    def __init__(self, called: float, launched: float) -> None:
        self._seconds: dict[str, float] = {}
        self._called = self._last = called
        self.mark("preparing", launched)
        self.mark("torchrun", psutil.Process().create_time())

    @classmethod
    def of(cls, job: Job) -> Phases:
        """Those of a rank that has just been started for a job, whose file was written last before that."""
        return cls(job.called, job.place.stat().st_mtime if job.place.exists() else job.called)

    def mark(self, name: str, now: float | None = None) -> None:
        """A phase is over."""
        now = time.time() if now is None else now
        self._seconds[name] = self._seconds.get(name, 0.0) + max(0.0, now - self._last)
        self._last = max(self._last, now)

    def describe(self) -> str:
        """`12.3 s from the call to the end of the first step: preparing 0.4, torchrun 2.1, …`."""
        each = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._seconds.items())
        return f"{self._last - self._called:.1f} s from the call to the end of the first step: {each}"
