"""Prefect flows, one file each: thin, they call gptpipe and hold no logic of their own.

Who runs one calls `begin` first; `flows.deployed` does so for Prefect's workers.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from gptpipe.config.settings import make_home, prepare_environment, settings
from gptpipe.errors import UserError
from gptpipe.services.users import join_users

_held: list[IO[bytes]] = []  # open as long as this process lives


@cache
def begin() -> None:
    """Get this process ready to run flows, once: its environment, its local folder, its lines on the runs' pages.

    Call it before Prefect is imported: it reads the environment then.

    Raises:
        UserError: a setting cannot be used, or the local folder cannot be written.
    """
    prepare_environment()
    make_home(settings().home_path)
    with suppress(UserError):
        _held.append(join_users(Path(os.environ.get("PREFECT_HOME", settings().home_path / "prefect"))))
    from flows.server.logs import show_on_pages

    show_on_pages(settings().log_level)
