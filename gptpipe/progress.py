"""What a person sees while it runs: lines of the `gptpipe` logger, and one line that changes on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from gptpipe.wording import duration, visible

log = logging.getLogger("gptpipe.progress")
_PLAIN_EVERY = 10.0  # seconds between plain progress lines
SAY_EVERY = 2.0  # seconds between what is said of work that goes on


class NowAndThen:
    """Says how far work is, as progress, not more often than every two seconds."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, text: Callable[[float], str]) -> None:
        """Say it if it is time.

        Args:
            text: of the seconds since the work began.
        """
        now = time.monotonic()
        if now - self._said > SAY_EVERY:
            self._said = now
            log.info("%s", text(now - self._began), extra={"progress": True})


class Progress:
    """Turns the lines of metrics.jsonl into progress lines: loss, tokens per second, time left.

    Args:
        title: what they begin with, where several trainings go on at once.

    Attributes:
        begin: the step that training goes on from; what was logged up to there is not said again.
    """

    def __init__(self, steps: int, tokens_a_step: int, title: str = "") -> None:
        self._steps, self._tokens_a_step, self._title = steps, tokens_a_step, title
        self._validation: float | None = None
        self.begin = 0

    def read(self, records: list[dict[str, Any]]) -> Progress:
        """Remember the newest validation loss."""
        for record in records:
            self._validation = record.get("validation/loss", self._validation)
        return self

    def __call__(self, records: list[dict[str, Any]]) -> None:
        self.read(records)
        last = next((record for record in reversed(records) if "train/loss" in record), None)
        if last is not None and last["step"] > self.begin:
            begin = f"{self._title}: " if self._title else ""
            log.info(begin + self.describe(last), extra={"progress": True, "last": last["step"] == self._steps})

    def describe(self, record: dict[str, Any]) -> str:
        speed = record["train/tokens_per_second"]
        left = (self._steps - record["step"]) * self._tokens_a_step / speed
        validation = f"  validation {self._validation:.3f}" if self._validation is not None else ""
        return (
            f"step {record['step']:,}/{self._steps:,}  loss {record['train/loss']:.3f}{validation}  "
            f"{speed:,.0f} tokens/s  {duration(left)} left"
        )


class ConsoleHandler(logging.Handler):
    """Log lines on stderr. On a terminal progress stays on one line; elsewhere it is a plain line now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._terminal = sys.stderr.isatty()
        self._open = False
        self._last = -_PLAIN_EVERY

    def emit(self, record: logging.LogRecord) -> None:
        text = visible(record.getMessage())
        if getattr(record, "progress", False):
            if self._terminal:
                sys.stderr.write(f"\r\x1b[K{text}")
                self._open = True
            elif record.created - self._last >= _PLAIN_EVERY:
                self._last = record.created
                sys.stderr.write(f"{text}\n")
        else:
            start = "\n" if self._open else ""
            self._open = False
            prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            sys.stderr.write(f"{start}{prefix}{text}\n")
        sys.stderr.flush()


def show_on_console(level: str) -> None:
    """Let the `gptpipe` logger speak on stderr."""
    root = logging.getLogger("gptpipe")
    root.setLevel(level)
    root.propagate = False
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, ConsoleHandler)]
    root.addHandler(ConsoleHandler())
