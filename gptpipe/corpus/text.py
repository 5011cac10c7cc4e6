"""Text files, one document each: in pieces, and what must be known of the whole before a piece is written."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptpipe.corpus.cuts import CELL, Piece, SafePlaces, cut, first_byte
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.readers import open_range, open_whole, read_small
from gptpipe.corpus.sources import Source
from gptpipe.errors import UserError

_SNIFFED = 8192  # bytes in which a NUL says that a file is not text
HELD = 32_000_000  # a text up to this size is read once, a longer one as often as it takes
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextFacts:
    """What must be known of the whole text before a part of it can be written.

    Attributes:
        sha256: of the clean text.
        left_out: why it is not in the dataset; empty when it is.
        cut: where the validation part begins, in bytes of the file, when the one document is split by position.
    """

    sha256: str
    left_out: str = ""
    cut: int = 0


def text_pieces(source: Source, safe: SafePlaces, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
    """The pieces of a text file, or of the range of it that begins in [start, stop)."""
    ranged = start > 0 or stop is not None
    with open_range(source, first_byte(start, safe)) if ranged else open_whole(source) as stream:
        yield from cut(stream, safe, start, stop, where=source.url)


def read_text(source: Source, safe: SafePlaces, options: ReadOptions) -> tuple[TextFacts, Iterable[Piece]]:
    """A whole text file: what is to be known of it, and its pieces. A long one is read again for each."""
    if source.size <= CELL and not source.packing:
        piece = Piece(0, read_small(source), True)
        return examine_text(source, [piece], options), [piece]
    held: list[Piece] = []
    size = 0
    pieces = text_pieces(source, safe)
    for piece in pieces:
        held.append(piece)
        size += len(piece.data)
        if size > HELD:
            break
    else:
        return examine_text(source, held, options), held
    pieces.close()  # type: ignore[attr-defined]
    return examine_text(source, _Again(source, safe), options), _Again(source, safe)


@dataclass(frozen=True)
class _Again:
    """The pieces of a source, from the beginning whenever they are asked for."""

    source: Source
    safe: SafePlaces

    def __iter__(self) -> Iterator[Piece]:
        return text_pieces(self.source, self.safe)


def examine_text(source: Source, pieces: Iterable[Piece], options: ReadOptions) -> TextFacts:
    """Read a whole text for its facts."""
    state = hashlib.sha256()
    characters: list[int] = []
    size = 0
    for piece in pieces:
        text = decode_piece(piece, source)
        if text is None:
            return TextFacts("", "not UTF-8")
        size += len(_without_bom(piece))
        characters.append(len(text))
        state.update(options.clean(text).encode())
    left_out = options.wrong_length(size) if size else "empty"
    if left_out or not options.by_position:
        return TextFacts(state.hexdigest(), left_out)
    characters_left = int((1 - options.validation) * sum(characters))
    for piece, count in zip(pieces, characters, strict=True):
        if characters_left <= count:
            return TextFacts(state.hexdigest(), cut=piece.start + _bytes_of(piece, source, characters_left))
        characters_left -= count
    raise AssertionError("the characters of the pieces do not add up")


def needs_reading(source: Source, options: ReadOptions) -> bool:
    """Whether the facts of a text are more than what its file says by itself."""
    if options.by_position or options.nfc or source.errors != "strict":
        return True
    with open_range(source, 0) as stream:
        return stream.read(len(_BOM)) == _BOM


def facts_of_range(source: Source, safe: SafePlaces, options: ReadOptions) -> TextFacts:
    """The facts of a text that is read in ranges, from its file's SHA-256 where that is all there is to it."""
    if needs_reading(source, options):
        return examine_text(source, _Again(source, safe), options)
    return TextFacts(source.sha256, options.wrong_length(source.size))


def _bytes_of(piece: Piece, source: Source, characters: int) -> int:
    """How many bytes of a piece its first characters are, a byte order mark included."""
    mark = len(piece.data) - len(_without_bom(piece))
    data = piece.data[mark:]
    if source.errors == "replace":
        # the longest beginning with this many characters: one that ends inside a character counts it already
        count = bisect_right(range(len(data) + 1), characters, key=lambda n: len(data[:n].decode(errors="replace")))
        return mark + count - 1
    return mark + len(data.decode()[:characters].encode())


def _without_bom(piece: Piece) -> bytes:
    return piece.data.removeprefix(_BOM) if piece.start == 0 else piece.data


def decode_piece(piece: Piece, source: Source) -> str | None:
    """A piece as text, not cleaned; None when it is not UTF-8 and such documents are skipped."""
    data = _without_bom(piece)
    return decode(data, source, piece.start + len(piece.data) - len(data))


def decode(data: bytes, source: Source, offset: int, where: str = "") -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if source.errors == "replace":
            return data.decode("utf-8", errors="replace")
        if source.errors == "skip":
            return None
        if b"\0" in data[:_SNIFFED]:
            hint = "it looks like a binary file: give text, or leave it out with --set data.errors=skip"
        else:
            hint = "--set data.errors=replace puts U+FFFD there, --set data.errors=skip leaves the document out"
        raise UserError(
            f"byte {offset + error.start} is not UTF-8 (0x{data[error.start]:02x})",
            where=where or source.url,
            hint=hint,
        ) from None


def pieces_of(text: str, safe: SafePlaces) -> list[Piece]:
    """A text that is in memory, as pieces."""
    data = text.encode()
    return [Piece(0, data, True)] if len(data) <= CELL else list(cut(io.BytesIO(data), safe))
