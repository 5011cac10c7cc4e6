"""Who works with the records of Prefect in a home: each process that runs flows there holds a file while it lives."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import IO

from gptpipe.errors import UserError

_FILE = "commands.lock"


def join_users(folder: Path) -> IO[bytes]:
    """Be one of them, until the end of this process, however that comes; the file is to be kept open.

    Args:
        folder: PREFECT_HOME.

    Raises:
        UserError: it is no folder, or cannot be written.
    """
    users = _opened(folder)
    with suppress(OSError):  # a file system that knows no locks: then nobody is known to be alone
        fcntl.flock(users, fcntl.LOCK_SH)
    return users


def join_alone(folder: Path) -> tuple[IO[bytes], bool]:
    """The same, and whether there was no other: then what is taken for running there has no process any more."""
    users = _opened(folder)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(users, fcntl.LOCK_SH)
    except OSError:
        users.close()
        return join_users(folder), False
    return users, True


def _opened(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / _FILE).open("ab")
    except OSError as error:
        hint = "move away what is in its place, or check its permissions"
        raise UserError(f"no folder to write to ({error.strerror})", where=str(folder), hint=hint) from None
