"""Documents out of source files, and the places where a document may be cut without changing a token."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe.data.sources import Source
from gptpipe.errors import UserError

# Text is tokenized in pieces of at most about this many characters. A piece may be longer only where the
# text has no place to cut it.
PIECE_CHARACTERS = 1_000_000

_SNIFFED = 8192  # bytes in which a NUL says that a file is not text

# Every tiktoken pattern ends a token between an ASCII letter and white space, and what it matches on either
# side does not depend on the other.
_SAFE_CUT = re.compile(r"(?<=[A-Za-z])(?=[ \n])")


@dataclass(frozen=True)
class Document:
    """One text. `id` is the path of its file and the position in it: `part/of/file.txt#0`."""

    id: str
    text: str


def read_documents(source: Source, content: bytes, text_field: str, dropped: Counter[str]) -> Iterator[Document]:
    """The documents of one file's content, in order; what is left out is counted in `dropped` by reason.

    The position in the id is the byte offset of a line in JSONL, the row in Parquet, 0 for a text file.

    Raises:
        UserError: bytes that are not UTF-8, a line or column that has no text; the place is named.
    """
    reader = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[source.kind]
    for position, text in reader(source, content, text_field, dropped):
        if text:
            yield Document(f"{source.path}#{position}", text)
        else:
            dropped["empty"] += 1


def _decode(data: bytes, source: Source, offset: int, dropped: Counter[str], where: str = "") -> str | None:
    """`data` as text, or None when it is not UTF-8 and such documents are skipped."""
    if offset == 0 and data.startswith(b"\xef\xbb\xbf"):
        data, offset = data[3:], 3
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if source.errors == "replace":
            return data.decode("utf-8", errors="replace")
        if source.errors == "skip":
            dropped["not UTF-8"] += 1
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


def _read_text(source: Source, content: bytes, _: str, dropped: Counter[str]) -> Iterator[tuple[int, str]]:
    text = _decode(content, source, 0, dropped)
    if text is not None:
        yield 0, text


def _read_jsonl(source: Source, content: bytes, field: str, dropped: Counter[str]) -> Iterator[tuple[int, str]]:
    offset = 0
    for number, line in enumerate(io.BytesIO(content), 1):
        start, offset = offset, offset + len(line)
        if not line.strip():
            continue
        text = _decode(line, source, start, dropped)
        if text is None:
            continue
        where = f"{source.url}, line {number}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON ({error})", where=where, hint="mend or remove the line") from None
        value = row.get(field) if isinstance(row, dict) else None
        if not isinstance(value, str):
            have = f"it has {', '.join(map(repr, row))}" if isinstance(row, dict) and row else "it has no fields"
            problem = "is not text" if value is not None else "is missing"
            raise UserError(f"field {field!r} {problem}", where=where, hint=f"{have}; choose one with data.text_field")
        clean = _without_surrogates(value, where, source, dropped)
        if clean is not None:
            yield start, clean


def _read_parquet(source: Source, content: bytes, column: str, dropped: Counter[str]) -> Iterator[tuple[int, str]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        kind = file.schema_arrow.field(column).type if column in names else None
    except _PARQUET_ERRORS as error:
        raise _damaged_parquet(source, error) from None
    if kind is None:
        raise UserError(
            f"no column {column!r}",
            where=source.url,
            hint=f"it has {', '.join(map(repr, names))}; choose one with data.text_field",
        )
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"column {column!r} holds {kind}, not text", where=source.url, hint="choose another with data.text_field"
        )
    row = -1
    for values in _parquet_batches(source, file, column):
        for data in values:  # bytes: nothing promises that they are UTF-8
            row += 1
            text = _decode(data or b"", source, 0, dropped, f"{source.url}, row {row}")
            if text is not None:
                yield row, text


_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


def _parquet_batches(source: Source, file: pq.ParquetFile, column: str) -> Iterator[list[bytes | None]]:
    try:
        for batch in file.iter_batches(columns=[column]):
            array = batch.column(0)
            binary = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
            yield array.view(binary).to_pylist()
    except _PARQUET_ERRORS as error:
        raise _damaged_parquet(source, error) from None


def _damaged_parquet(source: Source, error: Exception) -> UserError:
    return UserError(
        f"not a Parquet file, or not a whole one ({error})", where=source.url, hint="mend or remove the file"
    )


def _without_surrogates(text: str, where: str, source: Source, dropped: Counter[str]) -> str | None:
    """JSON can write half a surrogate pair, which no UTF-8 text holds."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if source.errors == "strict":
            raise UserError(
                f"half a surrogate pair at character {error.start}", where=where, hint="set data.errors=replace or skip"
            ) from None
        if source.errors == "skip":
            dropped["not UTF-8"] += 1
            return None
        return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
    return text


def cut_text(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Pieces of `text`, cut only where tokenizing them apart gives the tokens of the whole.

    A piece holds at most `limit` characters, unless there is no safe place in it: then it goes on to the next.
    """
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit + 1]
        cut = None
        for back in (1 << 12, limit):  # the last safe place is nearly always close to the end
            found = [match.start() for match in _SAFE_CUT.finditer(window, max(1, len(window) - back))]
            if found:
                cut = start + found[-1]
                break
        if cut is None:
            later = _SAFE_CUT.search(text, start + limit)
            if later is None:
                break
            cut = later.start()
        yield text[start:cut]
        start = cut
    yield text[start:]
