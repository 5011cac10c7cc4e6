"""What a flow run's page says: the library's lines, and one line where something went wrong."""

from __future__ import annotations

import logging

from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.logging.handlers import APILogHandler

from flows.server.report import top_run
from gptpipe.errors import Preempted, UserError
from gptpipe.launch.torchrun import Cancelled

_PROGRESS_SECONDS = 5.0  # between two lines of progress: a week of training stays a page that opens
_EXPECTED = (UserError, Preempted, Cancelled, CancelledRun, TerminationSignal)
_STOPPED = (Preempted, Cancelled, CancelledRun, TerminationSignal)  # nothing went wrong: somebody stopped it
_last_progress = 0.0


def show_on_pages(level: str) -> None:
    """Send what the library says to the run that a person or a schedule started, and no traceback beside it."""
    logger = logging.getLogger("gptpipe")
    logger.setLevel(level)
    handler = APILogHandler()
    handler.addFilter(_for_the_page_that_was_opened)
    logger.addHandler(handler)
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(OneLine(name, handler))


def _for_the_page_that_was_opened(record: logging.LogRecord) -> bool:
    """Prefect shows a subflow's lines on a page of its own: they go to the run that was started."""
    global _last_progress
    if getattr(record, "progress", False) and not getattr(record, "last", False):
        if record.created - _last_progress < _PROGRESS_SECONDS:
            return False
        _last_progress = record.created
    if run := top_run():
        record.flow_run_id = run
    return True


class OneLine(logging.Filter):
    """Turns a traceback at ERROR into one line. The traceback itself follows at DEBUG, for a fault of ours always.

    Args:
        name: of the logger that it filters. A task's exception is its flow's too, which says it.
        handler: what the traceback of a fault is given to.
    """

    def __init__(self, name: str, handler: logging.Handler) -> None:
        super().__init__()
        self._of_task = name == "prefect.task_runs"
        self._in_worker = name == "prefect.engine"  # its lines are in the worker's log, not on a page
        self._handler = handler
        self._said: tuple[BaseException | None, str] = (None, "")

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or record.levelno < logging.ERROR:
            return True
        error = record.exc_info[1]
        expected = isinstance(error, _EXPECTED)
        if self._in_worker and not expected:
            return True
        if not self._in_worker and (not expected or logging.getLogger("gptpipe").isEnabledFor(logging.DEBUG)):
            debug = {"levelno": logging.DEBUG, "levelname": "DEBUG"}
            self._handler.handle(logging.makeLogRecord(record.__dict__ | debug))
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
