"""Rows of Parquet files as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.readers import open_range
from gptpipe.corpus.sources import Source
from gptpipe.corpus.text import decode
from gptpipe.dataset.left_out import LeftOut
from gptpipe.errors import UserError

_BATCH_ROWS = 512
_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


def read_parquet(
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
                    text = decode(data or b"", source, 0, f"{source.url}, row {row}")
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
        f"not a Parquet file, or not a whole one ({error})", where=source.url, hint="fix or remove the file"
    )
