"""What a failed run shows on its page: one line; its traceback is at DEBUG."""

from __future__ import annotations

import logging

from prefect.exceptions import CancelledRun, TerminationSignal

from gptpipe.errors import Preempted, UserError
from gptpipe.launch.torchrun import Cancelled

_STOPPED = (Preempted, Cancelled, CancelledRun, TerminationSignal)  # nothing went wrong: somebody stopped it
_EXPECTED = (UserError, *_STOPPED)


class Traces:
    """Gives the traceback of an error to a handler at DEBUG, once.

    A task's error is its flow's too, and a subflow's is that of the flow that called it: all are on the same page.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._given: BaseException | None = None

    def give(self, record: logging.LogRecord, error: BaseException | None) -> None:
        if error is not self._given:
            self._given = error
            debug = {"levelno": logging.DEBUG, "levelname": "DEBUG"}
            self._handler.handle(logging.makeLogRecord(record.__dict__ | debug))


class OneLine(logging.Filter):
    """Turns a traceback at ERROR into one line. The traceback itself follows at DEBUG, for a fault of ours always.

    Args:
        name: of the logger that it filters. A task's exception is its flow's too, which says it.
        traces: what the traceback of a fault is given to.
    """

    def __init__(self, name: str, traces: Traces) -> None:
        super().__init__()
        self._of_task = name == "prefect.task_runs"
        self._in_worker = name == "prefect.engine"  # its lines are in the worker's log, not on a page
        self._traces = traces
        self._said: tuple[BaseException | None, str] = (None, "")

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or record.levelno < logging.ERROR:
            return True
        error = record.exc_info[1]
        expected = isinstance(error, _EXPECTED)
        if self._in_worker and not expected:
            return True
        if not self._in_worker and (not expected or logging.getLogger("gptpipe").isEnabledFor(logging.DEBUG)):
            self._traces.give(record, error)
        page = getattr(record, "flow_run_id", "")
        if self._of_task or self._said == (error, page):  # Prefect says it again where its engine ends
            return False
        self._said = (error, page)
        if isinstance(error, _STOPPED):
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = _line_of(error), ()
        record.exc_info = record.exc_text = None
        return True


def _line_of(error: BaseException | None) -> str:
    if isinstance(error, _EXPECTED):
        return str(error) or type(error).__name__
    first = str(error).strip().splitlines()[:1]
    return ": ".join([type(error).__name__, *first]) + " (the traceback is at DEBUG)"
