"""What SIGTERM and its like do: a launcher counts them and asks its ranks, a rank finishes its step and saves.

A rank whose launcher is gone ends at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import psutil

from gptpipe.processes import is_running, start_of

log = logging.getLogger(__name__)
_WATCH_SECONDS = 0.5
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class StopSignals:
    """SIGTERM, SIGINT and SIGHUP, counted instead of obeyed."""

    count: int = 0
    first: str = ""
    _before: dict[int, Any] = field(default_factory=dict)

    @contextmanager
    def caught(self) -> Iterator[StopSignals]:
        """Count them while the block runs (in the main thread: elsewhere Python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def note(number: int, _: Any) -> None:
            self.count += 1
            self.first = self.first or signal.Signals(number).name

        self._before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)


class StopRequest:
    """Whether this rank was asked to stop, and why. Installs handlers for SIGTERM and SIGINT."""

    def __init__(self, max_hours: float = 0.0) -> None:
        self.reason = ""
        self._deadline = time.monotonic() + max_hours * 3600 if max_hours else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or "asked to stop"  # by which signal the launcher knows

    def asked(self) -> bool:
        if not self.reason and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "train.max_hours is used up"
        return bool(self.reason)


def end_with(launcher: int) -> None:
    """End this process when its parent or the launcher is gone: nobody would stop it any more.

    Nothing is saved, since a new run may already be writing there; the last committed checkpoint stands.
    """
    parent = os.getppid()
    try:
        started = start_of(launcher)
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            if os.getppid() != parent or not is_running(launcher, started):
                os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def send_signal(process: psutil.Process, number: int) -> None:
    """Send it, unless the process is gone."""
    with suppress(psutil.Error):
        process.send_signal(number)
