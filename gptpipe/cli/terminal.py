"""Standard output and error where they are not UTF-8, or cannot be written at all."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

_PLAIN = {"→": "->", "–": "-", "—": "-", "…": "...", "×": "x", "≤": "<=", "≥": ">="}


def open_what_is_closed() -> None:
    """Let standard streams that whoever started this process has closed lead nowhere.

    Otherwise the next file that is opened would take their number, and get what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def show_what_it_can() -> None:
    """Let what the terminal's encoding does not have be written in letters that it has.

    Where the names of files are not UTF-8 to Python, this process starts again as one to which they are.
    """
    if sys.getfilesystemencoding() != "utf-8":
        as_it_was = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{sys.stdout.encoding}:backslashreplace"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | as_it_was)
    os.environ.pop("PYTHONIOENCODING", None)  # what other processes say goes through pipes, in UTF-8
    codecs.register_error("gptpipe-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="gptpipe-plain")


def _plain(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    return b"".join(_as_bytes(character) for character in error.object[error.start : error.end]), error.end


def _as_bytes(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that Python could not read
        return bytes([ord(character) - 0xDC00])
    return _PLAIN.get(character, character).encode("ascii", "backslashreplace")


def drop_unwritten() -> None:
    """Leave what could not be written: Python would try once more at its end, and say so at length."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
