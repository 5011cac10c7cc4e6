"""One document of a file of records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One document of a file that holds many. `position`: byte offset of a JSONL line, number of a Parquet row."""

    position: int
    text: str  # clean


class Unreadable(Exception):
    """A record that cannot be read: in a word what is wrong, what exactly, and what to do."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint
