"""Numbers and errors as a person says them, in log lines and answers."""

from __future__ import annotations

from collections.abc import Mapping


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


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
