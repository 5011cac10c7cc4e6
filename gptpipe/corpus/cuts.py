"""Where a text may be cut so that tokenizing the pieces apart gives the tokens of the whole.

Every tiktoken pattern splits text into words, numbers, punctuation and white space before it merges bytes, and
none looks back. So a place is safe when no match crosses it whatever follows: white space begins a match after
a letter or a digit; a space does after anything that is not white space; a letter and a digit never share one.
GPT-2's own pattern begins one at any white space. All of that is seen in the bytes, since what follows the place
is ASCII and what precedes it is looked at in its encoded form.

A text has one fixed set of cuts: the first safe place at or after every multiple of `CELL` bytes. Whoever reads
a range of it finds the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from gptpipe.errors import UserError
from gptpipe.tokenizer import GPT2_PATTERN, Tokenizer

CELL = 500_000  # bytes
PIECE_TOKENS = 2 * CELL  # no token is shorter than a byte, so the parts of a piece are never more than its cells
_BLOCK = 1 << 20
LONGEST = 64_000_000  # bytes between two places, which are held at once

_NOT_SPACE = (  # any character that is no white space, seen from its last bytes
    rb"(?<![\x00-\x20\x7f])(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])"
    rb"(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)"
)
_ANY_PATTERN = (
    rb"(?<=[A-Za-z0-9])(?=[\n\t\r])|(?<=[\xe5-\xe8][\x80-\xbf][\x80-\xbf])(?=[\n\t\r])|" + _NOT_SPACE + rb"(?= )"
    rb"|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])"
)


@dataclass(frozen=True)
class SafePlaces:
    """Where a text may be cut.

    Attributes:
        pattern: matches such places, with no width.
        behind, ahead: how many bytes before a place, and from it on, it is judged by.
    """

    pattern: re.Pattern[bytes]
    behind: int = 3
    ahead: int = 1


SAFE_ANYWHERE = SafePlaces(re.compile(_ANY_PATTERN))
SAFE_IN_GPT2 = SafePlaces(re.compile(_ANY_PATTERN + rb"|" + _NOT_SPACE + rb"(?=[\n\t\r])"))


def safe_places(tokenizer: Tokenizer) -> SafePlaces:
    """Where a text may be cut for this tokenizer: inside no token that text is searched for."""
    safe = SAFE_IN_GPT2 if tokenizer.pattern == GPT2_PATTERN else SAFE_ANYWHERE
    whole = [token.text.encode() for token in tokenizer.added]
    inside = [(text[:place], text[place:]) for text in whole for place in range(1, len(text))]
    across = [
        rb"(?<=" + re.escape(left) + rb")" + re.escape(right)
        for left, right in inside
        if any(match.start() == len(left) for match in safe.pattern.finditer(left + right))
    ]
    if not across:
        return safe
    longest = max(map(len, whole))
    pattern = rb"(?!" + rb"|".join(across) + rb")(?:" + safe.pattern.pattern + rb")"
    return SafePlaces(re.compile(pattern), max(safe.behind, longest), max(safe.ahead, longest))


@dataclass(frozen=True)
class Piece:
    """Bytes of a text between two cuts.

    Attributes:
        start: place of the first byte in the text.
        last: whether the text ends with it.
    """

    start: int
    data: bytes
    last: bool

    @property
    def cell(self) -> int:
        return cell_of(self.start)


def cell_of(place: int) -> int:
    """The number of the stretch of `CELL` bytes that a byte lies in."""
    return place // CELL


def cut(
    stream: IO[bytes], safe: SafePlaces, start: int = 0, stop: int | None = None, *, where: str = ""
) -> Iterator[Piece]:
    """The pieces of a text that begin in [start, stop): what a range of it holds.

    A piece holds `CELL` bytes and the few up to a safe place; more only where the text has none.

    Args:
        stream: the text, from `first_byte(start, safe)` on.
        safe: the places where it may be cut, from `safe_places`.
        start, stop: multiples of `CELL`; `stop` None is the end.
        where: what a person calls the text.

    Raises:
        UserError: it goes on for `LONGEST` bytes without such a place.
    """
    reader = _Reader(stream, first_byte(start, safe), safe, where)
    place = reader.next_cut(start) if start else 0
    while (stop is None or place < stop) and not reader.ends_at(place):
        until = reader.next_cut((cell_of(place) + 1) * CELL)
        yield Piece(place, reader.take(place, until), reader.ends_at(until))
        place = until


def first_byte(start: int, safe: SafePlaces) -> int:
    """The byte from which `cut` needs a range that begins at `start`."""
    return max(0, start - safe.behind)


class _Reader:
    """A window on a stream that grows forwards as cuts are looked for, and drops what was taken."""

    def __init__(self, stream: IO[bytes], base: int, safe: SafePlaces, where: str) -> None:
        self._stream, self._base, self._safe, self._where = stream, base, safe, where
        self._data = bytearray()
        self._ended = False

    def _fill(self, until: int) -> None:
        """Have the bytes before `until`, or all there are."""
        while not self._ended and self._base + len(self._data) < until:
            block = self._stream.read(_BLOCK)
            self._data += block
            self._ended = not block

    def next_cut(self, start: int) -> int:
        """The first safe place at or after `start`, or the end of the text."""
        at = start
        while True:
            self._fill(at + self._safe.ahead)
            match = self._safe.pattern.search(self._data, max(0, at - self._base))
            end = self._base + len(self._data)
            # so near to the end of what is there, a place is looked at again with all that it is judged by
            judged = end if self._ended else end - self._safe.ahead
            if match and self._base + match.start() <= judged:
                return self._base + match.start()
            if self._ended:
                return end
            if end - start > LONGEST:
                raise UserError(
                    f"{LONGEST // 1_000_000} MB from byte {start:,} on without a place where it may be cut",
                    where=self._where,
                    hint="split the file, or leave it out if it is no text",
                )
            at = max(start, judged + 1)

    def ends_at(self, place: int) -> bool:
        self._fill(place + 1)
        return place >= self._base + len(self._data)

    def take(self, start: int, stop: int) -> bytes:
        data = bytes(self._data[start - self._base : stop - self._base])
        keep = max(0, stop - self._safe.behind - self._base)
        del self._data[:keep]
        self._base += keep
        return data
