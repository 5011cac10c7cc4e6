"""Prefect flows, one file each: thin, they call gptpipe and hold no logic of their own."""

from gptpipe.config.settings import make_home, prepare_environment, settings

prepare_environment()  # a worker imports the flows without passing through the command line
make_home()

from flows.server.logs import show_on_pages  # noqa: E402

show_on_pages(settings().log_level)
