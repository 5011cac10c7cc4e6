"""Numbers and errors as a person says them, in log lines and answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from unicodedata import category

_UNSEEN = ("Cc", "Zl", "Zp")  # categories of Unicode: control, line and paragraph separators
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def counted(number: int, noun: str) -> str:
    """1 rank, 2 ranks, 12,000 files."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def first_line(error: BaseException) -> str:
    """What an error says, in its first line: its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 10 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def figure(value: object, absent: str = "–") -> str:
    """A number of a table with four decimals, a large one with fewer; `absent` for None."""
    if value is None:
        return absent
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1e7:
        return f"{value:.4g}"
    return f"{value:,.4f}" if abs(value) < 1e4 else f"{value:,.1f}"


def side_by_side(columns: Mapping[str, Mapping[str, object]]) -> str:
    """A Markdown table, a row per number and a column per model."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(figure(column.get(name)) for column in columns.values())} |" for name in names]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text in a cell of a Markdown table: nothing of it is taken for Markdown or HTML.

    By backslashes: one of Prefect's two user interfaces shows entities as they are written, but for this one.
    """
    for character in "\\`*_[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("<", "&lt;").split())


def unlinked(text: str) -> str:
    """Text in a cell of a table of Prefect's, of which one of its user interfaces makes links where it is Markdown's.

    The other one shows backslashes as they are; a space without width is seen in neither.
    """
    return text.replace("](", "]\u200b(")


def without_password(url: str) -> str:
    """An address as it may be shown: user:***@host."""
    return re.sub(r"(://[^/@:\s]*):[^@/\s]*@", r"\1:***@", url)


_SIGNED = re.compile(r"[?&](?:[\w-]*signature|[\w-]*token|sig|AWSAccessKeyId)=|^https?://[^/?#]*@", re.IGNORECASE)


def holds_secret(url: str) -> bool:
    """Whether an address holds a password or a signature, so that whoever sees it may use it."""
    return without_password(url) != url or bool(_SIGNED.search(url))


def fenced(text: str) -> str:
    """Text as it stands, in Markdown: between more backticks than it has in a row anywhere."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def visible(text: str, keep: str = "\n\t") -> str:
    """Text that moves no cursor, colours nothing and does not run backwards on a terminal, whoever wrote it.

    Control characters, and those that turn the direction of writing round, are shown as Python writes them: \\x1b.

    Args:
        keep: those that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        repr(character)[1:-1] if _is_unseen(character) and character not in keep else character for character in text
    )


def _is_unseen(character: str) -> bool:
    return character in _TURNING or category(character) in _UNSEEN


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
