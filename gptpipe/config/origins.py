"""Where each value of a configuration stands: in a file, or in an option of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptpipe.errors import UserError

_LONGEST = 80  # characters of an option that a line repeats


class Origins:
    """The file or option of each key, for the line that refuses its value. A later one takes an earlier one's place.

    Args:
        file: of the keys that no option gives; empty where there is none.
    """

    def __init__(self, file: str = "") -> None:
        self._file = file
        self._options: dict[str, str] = {}  # a key without an option is the file's: empty

    def add(self, values: dict[str, Any], option: str = "") -> None:
        """Values by section that stand in the file, or in an option as a person wrote it."""
        shown = " ".join(option.split())
        shown = f"{shown[:_LONGEST]}…" if len(shown) > _LONGEST else shown
        for key in _keys(values):
            self._options = {old: name for old, name in self._options.items() if not _overlap(key, old)}
            self._options[key] = shown

    def refusal(self, error: UserError) -> UserError:
        """The same with the file or the options in which the key stands that `where` names."""
        return UserError(error.message, where=self._place(error.where, error.message), hint=error.hint)

    def _place(self, key: str, message: str) -> str:
        found = self._found(key)
        # a section is refused for some of its keys, which the message names
        found = {each: name for each, name in found.items() if each.rpartition(".")[2] in message.split()} or found
        options = list(dict.fromkeys(name for name in found.values() if name))
        if options and list(found) == [key]:
            return options[0]
        names = [self._file] if self._file and (not options or "" in found.values()) else []
        return ": ".join(filter(None, [", ".join([*names, *options]), key]))

    def _found(self, key: str) -> dict[str, str]:
        """The keys that were given for a key, with their options: itself, below it, above it, or in its section."""
        while key:
            if found := {given: name for given, name in self._options.items() if _overlap(given, key)}:
                return found
            key = key.rpartition(".")[0]
        return {}


def _keys(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _overlap(one: str, other: str) -> bool:
    """Whether they are the same key, or one lies below the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
