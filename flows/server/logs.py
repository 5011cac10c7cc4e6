"""Which of the library's lines a flow run's page shows."""

from __future__ import annotations

import logging

from prefect.logging.handlers import APILogHandler

from flows.server.failures import OneLine, Traces
from flows.server.report import top_run

_PROGRESS_SECONDS = 5.0  # between two lines of progress: a week of training stays a page that opens
_last_progress = 0.0


def show_on_pages(level: str) -> None:
    """Send what the library says to the run that a person or a schedule started, and no traceback beside it."""
    logger = logging.getLogger("gptpipe")
    logger.setLevel(level)
    handler = APILogHandler()
    handler.addFilter(_for_the_page_that_was_opened)
    logger.addHandler(handler)
    traces = Traces(handler)
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(OneLine(name, traces))


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
