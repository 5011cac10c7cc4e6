"""Parquet pages as the shard writer lays them out, decoded with NumPy.

Arrow stores a uint16 as an int32 and spends more time on turning lists of those back than zstd does on the pages, so
the way that every token takes into a training goes past it. The layout is that of the Parquet format: data pages of
version 1, zstd, PLAIN values, levels run-length encoded (https://parquet.apache.org/docs/file-format/).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

_DATA_PAGE, _PLAIN = 0, 0
_CODEC = pa.Codec("zstd")
_ZERO_BITS = [[bit for bit in range(8) if not byte >> bit & 1] for byte in range(256)]


@dataclass(frozen=True)
class Page:
    """One data page, decompressed. A slot is a value, or a row of a list that has none.

    Attributes:
        values: the bytes behind the levels.
        rows: of a list, the slots in which a row begins, shape (rows that begin here,), int64.
        empty: of a list, the slots without a value, shape (k,), int64.
    """

    values: memoryview
    slots: int
    rows: np.ndarray
    empty: np.ndarray


def column_pages(chunk: memoryview, nested: bool) -> Iterator[Page]:
    """The pages of a column chunk, in order. What they hold is not checked again: the file's SHA-256 has been.

    Args:
        nested: whether the column is a list, whose pages begin with levels; otherwise it has one value a row.

    Raises:
        ValueError: a page is cut off, or not of this layout.
    """
    place = 0
    while place < len(chunk):
        header, place = _struct(chunk, place)
        try:
            kind, size, packed, data = header[1], header[2], header[3], header[5]
            slots, encoding = data[1], data[2]
        except (KeyError, TypeError):
            raise ValueError("a page without a header of a data page") from None
        if (kind, encoding) != (_DATA_PAGE, _PLAIN):
            raise ValueError(f"a page of kind {kind}, encoding {encoding}; expected a plain data page")
        body = chunk[place : place + packed]
        place += packed
        if len(body) != packed:
            raise ValueError("a page is cut off")
        content = memoryview(_CODEC.decompress(body, decompressed_size=size)).cast("B")
        rows = empty = np.empty(0, np.int64)
        if nested:  # repetition levels, then definition levels
            rows, content = _zeros(content, slots)
            empty, content = _zeros(content, slots)
        yield Page(content, slots, rows, empty)


def _zeros(content: memoryview, slots: int) -> tuple[np.ndarray, memoryview]:
    """Where the levels of `slots` slots, one bit each, are zero, and what follows the levels.

    Nearly all are one and lie in runs of it, so they are never laid out.
    """
    size = int.from_bytes(content[:4], "little")
    packed, rest = content[4 : 4 + size], content[4 + size :]
    pages: list[int] = []
    place = done = 0
    while done < slots:
        run, place = _varint(packed, place)  # refuses to read beyond the end
        count = run >> 1
        if run & 1:  # groups of eight bits
            for byte in packed[place : place + count]:
                pages += [done + bit for bit in _ZERO_BITS[byte]]
                done += 8
            place += count
        elif place < len(packed):
            if packed[place] == 0:
                pages += range(done, done + count)
            done += count
            place += 1
        if not count or place > len(packed):
            raise ValueError("a page's levels end before it does")
    zeros = np.array(pages, np.int64)
    return zeros[: np.searchsorted(zeros, slots)], rest


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[place : place + 10]:
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a page ends inside a number")


def _struct(data: memoryview, place: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol by field number: numbers and structs; of the rest only the end."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        if place >= len(data):
            raise ValueError("a page's header is cut off")
        byte = data[place]
        place += 1
        if not byte:
            return fields, place
        if byte >> 4:
            number += byte >> 4
        else:
            raw, place = _varint(data, place)
            number = raw >> 1 ^ -(raw & 1)
        fields[number], place = _value(data, place, byte & 0x0F)


def _value(data: memoryview, place: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, place
    if kind in (4, 5, 6):
        raw, place = _varint(data, place)
        return raw >> 1 ^ -(raw & 1), place
    if kind == 8:
        size, place = _varint(data, place)
        return None, place + size
    if kind == 12:
        return _struct(data, place)
    raise ValueError(f"a field of kind {kind} in a page's header")
