"""Documents out of source files, cleaned: the one text of a text file in pieces, the records of JSONL and Parquet."""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptpipe.config import DataConfig
from gptpipe.corpus.cuts import CELL, Piece, cut, first_byte
from gptpipe.corpus.json_text import missing_text, text_at
from gptpipe.corpus.readers import open_range, open_whole, read_small
from gptpipe.corpus.sources import Source
from gptpipe.dataset.left_out import LeftOut
from gptpipe.errors import UserError

_SNIFFED = 8192  # bytes in which a NUL says that a file is not text
_HELD = 32_000_000  # a text up to this size is read once, a longer one as often as it takes
_BATCH_ROWS = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ReadOptions:
    """What decides which documents there are and what they say; the fields are `DataConfig`'s.

    Attributes:
        validation: share of the one document that is split by position, or of all hashes of texts.
    """

    text_field: str = "text"
    on_error: str = "stop"
    nfc: bool = False
    min_bytes: int = 0
    max_bytes: int = 0
    validation: float = 0.0
    by_position: bool = False

    @classmethod
    def of(cls, config: DataConfig, *, by_position: bool = False, validation: float = 0.0) -> ReadOptions:
        return cls(
            text_field=config.text_field,
            on_error=config.on_error,
            nfc=config.nfc,
            min_bytes=config.min_bytes,
            max_bytes=config.max_bytes,
            validation=validation,
            by_position=by_position,
        )

    def clean(self, text: str) -> str:
        """`text` as it is tokenized. Cleaning the pieces of a text gives the pieces of the clean text."""
        return unicodedata.normalize("NFC", text) if self.nfc and not text.isascii() else text

    def wrong_length(self, size: int) -> str:
        """Why a document of `size` UTF-8 bytes, not cleaned yet, is left out; empty when it is not."""
        if size < self.min_bytes:
            return "too short"
        return "too long" if self.max_bytes and size > self.max_bytes else ""


# ---- text files: one document each


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


def text_pieces(source: Source, safe: re.Pattern[bytes], start: int = 0, stop: int | None = None) -> Iterator[Piece]:
    """The pieces of a text file, or of the range of it that begins in [start, stop)."""
    ranged = start > 0 or stop is not None
    with open_range(source, first_byte(start)) if ranged else open_whole(source) as stream:
        yield from cut(stream, safe, start, stop)


def read_text(source: Source, safe: re.Pattern[bytes], options: ReadOptions) -> tuple[TextFacts, Iterable[Piece]]:
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
        if size > _HELD:
            break
    else:
        return examine_text(source, held, options), held
    pieces.close()  # type: ignore[attr-defined]
    return examine_text(source, _Again(source, safe), options), _Again(source, safe)


@dataclass(frozen=True)
class _Again:
    """The pieces of a source, from the beginning whenever they are asked for."""

    source: Source
    safe: re.Pattern[bytes]

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
    wanted = int((1 - options.validation) * sum(characters))
    for piece, count in zip(pieces, characters, strict=True):
        if wanted <= count:
            return TextFacts(state.hexdigest(), cut=piece.start + _bytes_of(piece, source, wanted))
        wanted -= count
    raise AssertionError("the characters of the pieces do not add up")


def needs_reading(source: Source, options: ReadOptions) -> bool:
    """Whether the facts of a text are more than what its file says by itself."""
    if options.by_position or options.nfc or source.errors != "strict":
        return True
    with open_range(source, 0) as stream:
        return stream.read(len(_BOM)) == _BOM


def facts_of_range(source: Source, safe: re.Pattern[bytes], options: ReadOptions) -> TextFacts:
    """The facts of a text that is read in ranges, from its file's SHA-256 where that is all there is to it."""
    if needs_reading(source, options):
        return examine_text(source, _Again(source, safe), options)
    return TextFacts(source.sha256, options.wrong_length(source.size))


def _bytes_of(piece: Piece, source: Source, characters: int) -> int:
    """How many bytes of a piece its first characters are, a byte order mark included."""
    mark = len(piece.data) - len(_without_bom(piece))
    data = piece.data[mark:]
    if source.errors == "replace":
        # the longest beginning with so many characters: one that ends inside a character counts it already
        count = bisect_right(range(len(data) + 1), characters, key=lambda n: len(data[:n].decode(errors="replace")))
        return mark + count - 1
    return mark + len(data.decode()[:characters].encode())


def _without_bom(piece: Piece) -> bytes:
    return piece.data.removeprefix(_BOM) if piece.start == 0 else piece.data


def decode_piece(piece: Piece, source: Source) -> str | None:
    """A piece as text, not cleaned; None when it is not UTF-8 and such documents are skipped."""
    data = _without_bom(piece)
    return _decode(data, source, piece.start + len(piece.data) - len(data))


def _decode(data: bytes, source: Source, offset: int, where: str = "") -> str | None:
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


def pieces_of(text: str, safe: re.Pattern[bytes]) -> list[Piece]:
    """A text that is in memory, as pieces."""
    data = text.encode()
    return [Piece(0, data, True)] if len(data) <= CELL else list(cut(io.BytesIO(data), safe))


# ---- records: JSONL lines and Parquet rows


@dataclass(frozen=True)
class Record:
    """One document of a file that holds many. `position`: byte offset of a JSONL line, number of a Parquet row."""

    position: int
    text: str  # clean


def read_records(
    source: Source, options: ReadOptions, left_out: LeftOut, start: int = 0, stop: int | None = None
) -> Iterator[Record]:
    """The documents of a JSONL or Parquet file, or of a range of it.

    Args:
        start, stop: bytes in which a JSONL line begins, or row groups of Parquet; `stop` None is the end.

    Raises:
        UserError: a record that cannot be read and is not skipped; file and line are named.
    """
    reader = _read_jsonl if source.kind == "jsonl" else _read_parquet
    for position, text in reader(source, options, left_out, start, stop):
        size = len(text) if text.isascii() else len(text.encode())
        if not text:
            left_out.add("empty")
        elif reason := options.wrong_length(size):
            left_out.add(reason)
        else:
            yield Record(position, options.clean(text))


class _Unreadable(Exception):
    """A record that cannot be read: in a word what is wrong, what exactly, and what to do."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


def _read_jsonl(
    source: Source, options: ReadOptions, left_out: LeftOut, start: int, stop: int | None
) -> Iterator[tuple[int, str]]:
    for offset, line in _lines(source, start, stop):
        if not line.strip():
            continue
        try:
            text = _text_of_line(line, offset, source, options.text_field)
        except (_Unreadable, UserError) as error:
            if options.on_error == "skip":
                left_out.add(getattr(error, "kind", "not UTF-8"), f"{source.path}#{offset}: {error.message}")
                continue
            where = f"{source.url}, line {_line_number(source, offset)}"
            raise UserError(error.message, where=where, hint=error.hint) from None
        if text is None:
            left_out.add("not UTF-8")
        else:
            yield offset, text


def _lines(source: Source, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that begin in [start, stop)."""
    ranged = start > 0 or stop is not None
    with open_range(source, max(0, start - 1)) if ranged else open_whole(source) as stream:
        # a line that began earlier belongs to the range before
        offset = start - 1 + len(stream.readline()) if start else 0
        while stop is None or offset < stop:
            line = stream.readline()
            if not line:
                return
            yield offset, line
            offset += len(line)


def _text_of_line(line: bytes, offset: int, source: Source, field_name: str) -> str | None:
    if offset == 0 and line.startswith(_BOM):
        line, offset = line[len(_BOM) :], len(_BOM)
    text = _decode(line, source, offset)
    if text is None:
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(
            "not JSON",
            f"not JSON ({error})",
            "correct or remove the line, or --set data.on_error=skip leaves such lines out",
        ) from None
    value = text_at(row, field_name)
    if not isinstance(value, str):
        raise _Unreadable("no text field", *missing_text(row, field_name))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which no UTF-8 text holds
        if source.errors == "strict":
            raise _Unreadable(
                "half a surrogate pair",
                f"half a surrogate pair at character {error.start}",
                "--set data.errors=replace or skip",
            ) from None
        if source.errors == "skip":
            return None
        return value.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
    return value


def _line_number(source: Source, offset: int) -> int:
    """The number of the line that begins at a byte, counted only when there is something to say about it."""
    number, left = 1, offset
    with open_whole(source) as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def _read_parquet(
    source: Source, options: ReadOptions, left_out: LeftOut, start: int, stop: int | None
) -> Iterator[tuple[int, str]]:
    with open_parquet(source) as file:
        _check_column(source, file, options.text_field)
        groups = range(start, file.num_row_groups if stop is None else stop)
        row = sum(file.metadata.row_group(group).num_rows for group in range(start)) - 1
        for values in _parquet_batches(source, file, options.text_field, groups):
            for data in values:
                row += 1
                try:
                    text = _decode(data or b"", source, 0, f"{source.url}, row {row}")
                except UserError as error:
                    if options.on_error != "skip":
                        raise
                    left_out.add("not UTF-8", f"{source.path}#{row}: {error.message}")
                    continue
                if text is None:
                    left_out.add("not UTF-8")
                else:
                    yield row, text


@contextmanager
def open_parquet(source: Source) -> Iterator[pq.ParquetFile]:
    """A Parquet file, read where it lies; it must stay as it was planned."""
    with open_range(source, 0) as stream:
        try:
            file = pq.ParquetFile(stream, pre_buffer=False)
        except _PARQUET_ERRORS as error:
            raise _damaged_parquet(source, error) from None
        yield file


def _check_column(source: Source, file: pq.ParquetFile, column: str) -> None:
    """Raises UserError: there is no such column, or two, or one without text."""
    schema = file.schema_arrow
    names = schema.names
    kind: Any = None
    if names.count(column) > 1:
        raise UserError(f"{names.count(column)} columns are called {column!r}", where=source.url, hint="rename them")
    if column in names:
        kind = schema.field(column).type
    elif names.count(column.partition(".")[0]) == 1:
        kind = _nested_type(schema.field(column.partition(".")[0]).type, column.split(".")[1:])
    if kind is None:
        have = [name for field in schema for name in _text_names(field.name, field.type)] or names
        raise UserError(
            f"no column {column!r}",
            where=source.url,
            hint=f"it has {', '.join(map(repr, have))}; choose one with --set data.text_field=NAME",
        )
    if not _is_text(kind):
        raise UserError(
            f"column {column!r} holds {kind}, not text", where=source.url, hint="choose another with data.text_field"
        )


def _text_names(name: str, kind: pa.DataType) -> list[str]:
    """The dotted names of a column and of what lies in it that hold text."""
    if pa.types.is_struct(kind):
        return [inner for field in kind for inner in _text_names(f"{name}.{field.name}", field.type)]
    return [name] if _is_text(kind) else []


def _nested_type(kind: pa.DataType, names: list[str]) -> pa.DataType | None:
    for name in names:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _is_text(kind: pa.DataType) -> bool:
    """Whether Arrow holds text in this type, however it lays it out."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _as_bytes(array: pa.Array) -> list[bytes | None]:
    """The bytes of an array of text; nothing promises that they are UTF-8."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    elif pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if pa.types.is_string_view(array.type):
        return list(array.view(pa.binary_view()).to_pylist())
    binary = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
    return list(array.view(binary).to_pylist())


_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


def _parquet_batches(
    source: Source, file: pq.ParquetFile, column: str, groups: Iterable[int]
) -> Iterator[list[bytes | None]]:
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(groups), columns=[column]):
            array = batch.column(0)
            while pa.types.is_struct(array.type):  # of a nested column only the way to it is read
                array = pc.struct_field(array, 0)
            yield _as_bytes(array)
    except _PARQUET_ERRORS as error:
        raise _damaged_parquet(source, error) from None


def _damaged_parquet(source: Source, error: Exception) -> UserError:
    return UserError(
        f"not a Parquet file, or not a whole one ({error})", where=source.url, hint="mend or remove the file"
    )
