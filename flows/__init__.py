"""Prefect flows, one file each: thin, they call gptpipe and hold no logic of their own."""

import logging

from gptpipe.settings import make_home, prepare_environment, settings

prepare_environment()  # a worker imports the flows without passing through the command line
make_home()

from prefect.logging.handlers import APILogHandler  # noqa: E402

# what the library says belongs into the flow run's log
_logger = logging.getLogger("gptpipe")
_logger.setLevel(settings().log_level)
_logger.addHandler(APILogHandler())
