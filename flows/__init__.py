"""Prefect flows, one file each: thin, they call gptpipe and hold no logic of their own."""

import logging

from gptpipe.settings import make_home, prepare_environment, settings

prepare_environment()  # a worker imports the flows without passing through the command line
make_home()

from prefect.logging.handlers import APILogHandler  # noqa: E402

from flows.report import top_run  # noqa: E402

_PROGRESS_SECONDS = 5.0  # between two lines of progress: a week of training stays a page that opens
_last_progress = 0.0


def _for_the_page_that_was_opened(record: logging.LogRecord) -> bool:
    """Prefect shows a subflow's lines on a page of its own: they go to the run that a person or a schedule started."""
    global _last_progress
    if getattr(record, "progress", False) and not getattr(record, "last", False):
        if record.created - _last_progress < _PROGRESS_SECONDS:
            return False
        _last_progress = record.created
    if run := top_run():
        record.flow_run_id = run
    return True


# what the library says belongs into the flow run's log
_logger = logging.getLogger("gptpipe")
_logger.setLevel(settings().log_level)
_handler = APILogHandler()
_handler.addFilter(_for_the_page_that_was_opened)
_logger.addHandler(_handler)
