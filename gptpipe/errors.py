"""The two ways gptpipe ends that are not bugs: what the user gave is wrong, or the run stopped resumable."""

from __future__ import annotations

from typing import Any

from gptpipe.wording import visible, without_password

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


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
        self.message = " ".join(message.split())
        self.where = where
        self.hint = " ".join(hint.split())

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses process borders
        return _rebuilt, (type(self), self.message, self.where, self.hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return visible(f"{text} — {self.hint}" if self.hint else text, keep="")  # one line, whatever a file is called

    def as_dict(self) -> dict[str, str]:
        return {"message": self.message, "where": self.where, "hint": self.hint}


def _rebuilt(kind: type[UserError], message: str, where: str, hint: str) -> UserError:
    return kind(message, where=where, hint=hint)


def no_space(where: str) -> UserError:
    """Whether a disk is full, as any library says it."""
    return UserError(
        "no space left on the device",
        where=where,
        hint="free some space or choose another folder; what was complete is kept, run again to go on",
    )


class Damaged(UserError):
    """A file that gptpipe wrote has changed since; it can be made again where its source still exists."""


class Preempted(Exception):
    """Training stopped early with everything saved; starting it again goes on where it was (exit code 75)."""
