"""The two ways gptpipe ends that are not bugs: what the user gave is wrong, or the run stopped resumable."""

from __future__ import annotations

import errno
from typing import Any

from gptpipe.wording import visible, without_password

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"

_LONGEST = 1000  # characters of a message or a hint
_OF_THE_PLACE = frozenset(
    [
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EROFS,
        errno.EFBIG,
        errno.EIO,
        errno.ESTALE,
        errno.ENODEV,
        errno.ENXIO,
    ]
)


class UserError(Exception):
    """Something the user gave cannot be used. Shown as one line, without a traceback, with exit code 2.

    Args:
        message: what is wrong.
        where: the file, URL, option or configuration key it is wrong in.
        hint: what to do instead.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        message, where, hint = map(without_password, (message, where, hint))
        super().__init__(message, where, hint)
        self.message = _shortened(message)
        self.where = where
        self.hint = _shortened(hint)

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses process borders
        return _rebuilt, (type(self), self.message, self.where, self.hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return visible(f"{text} — {self.hint}" if self.hint else text, keep="")  # one line, whatever a file is called

    def as_dict(self) -> dict[str, str]:
        return {"message": self.message, "where": self.where, "hint": self.hint}


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _rebuilt(kind: type[UserError], message: str, where: str, hint: str) -> UserError:
    return kind(message, where=where, hint=hint)


def no_space(where: str) -> UserError:
    """Whether a disk is full, as any library says it."""
    return UserError(
        "no space left on the device",
        where=where,
        hint="free some space or choose another folder; what was complete is kept, run again to go on",
    )


def of_the_place(error: OSError, where: str = "") -> UserError | None:
    """What the system says of a path that nothing can be done with, for the user; None for anything else that it says.

    Args:
        where: the path, where the error does not tell it.
    """
    where = where or str(error.filename or "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(where or "a disk of this machine")
    if isinstance(error, PermissionError) and where:
        return UserError(f"access refused ({error.strerror})", where=where, hint="check the permissions of the path")
    if error.errno in _OF_THE_PLACE and where:
        return UserError(error.strerror or str(error), where=where, hint="give another path, or put this one right")
    return None


def damaged_database(said: str, where: str, loss: str) -> UserError | None:
    """What SQLite says of a file that is none of its databases, or not any more; None for anything else that it says.

    Args:
        loss: what is gone where no copy of it was kept.
    """
    if "not a database" not in said and "malformed" not in said:
        return None
    hint = f"put a copy of it there, or move it away: a new one is made, and {loss}"
    return UserError(f"the database is damaged ({said})", where=where, hint=hint)


class Damaged(UserError):
    """A file that gptpipe wrote has changed since; it can be made again where its source still exists."""


class Preempted(Exception):
    """Training stopped early with everything saved; starting it again goes on where it was (exit code 75)."""
