"""TensorFlow's checkpoints ("tensor bundles"), read without TensorFlow: an index of names, and files of raw tensors.

`PREFIX.index` is a table of LevelDB's format, uncompressed: blocks of sorted keys that share beginnings, an index block
that says where they lie, a footer that says where that lies. Each value is a protocol buffer with a tensor's type,
shape, file, place and size; the tensors lie in `PREFIX.data-NNNNN-of-NNNNN`, one after the other. Both are described in
TensorFlow's `tensor_bundle.h` and LevelDB's `table_format.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.storage.fetch import local_copy
from gptpipe.weights.tensors import Stored, read_at

_MAGIC = 0xDB4775248B80FB57
_FOOTER, _BLOCK_TRAILER = 48, 5  # bytes; the trailer: a byte for the compression, four for a checksum
_TYPES = {1: torch.float32, 2: torch.float64, 3: torch.int32, 9: torch.int64, 14: torch.bfloat16, 19: torch.float16}
_LONGEST_NAME = 512  # bytes
_HINT = "fetch the whole checkpoint again: its .index and .data files"


def read_bundle(prefix: str) -> dict[str, Stored]:
    """The tensors of a checkpoint, by name; read from their files when they are needed.

    Args:
        prefix: URL of the checkpoint without `.index`.

    Raises:
        UserError: a file is missing, cut off, or none of TensorFlow's.
    """
    where = f"{prefix}.index"
    try:
        table = storage.read_bytes(where)
    except FileNotFoundError:
        raise UserError("no such file", where=where, hint=_HINT) from None
    try:
        entries = dict(_table(table))
        header = _message(entries.pop(b""))
        messages = {name.decode(): _message(value) for name, value in entries.items()}
        shards = int(header.get(1, 1))
        return _tensors(prefix, messages, shards)
    except (IndexError, KeyError, ValueError, struct.error, TypeError) as error:
        raise UserError(f"not a whole index of TensorFlow's: {error}", where=where, hint=_HINT) from None


def _tensors(prefix: str, entries: dict[str, dict[int, Any]], shards: int) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for shard in range(shards):
        url = f"{prefix}.data-{shard:05d}-of-{shards:05d}"
        try:
            with local_copy(url) as path:
                file = path.open("rb")
                size = path.stat().st_size
        except FileNotFoundError:
            raise UserError("no such file", where=url, hint=_HINT) from None
        for name, entry in entries.items():
            if int(entry.get(3, 0)) != shard:
                continue
            if entry.get(1) not in _TYPES:
                raise UserError(f"{name} is of TensorFlow's type {entry.get(1)}", where=url, hint="give a GPT-2")
            shape, dtype = _shape(entry.get(2, b"")), _TYPES[entry[1]]
            offset, length = int(entry.get(4, 0)), int(entry.get(5, 0))
            if offset + length > size:
                raise UserError(f"cut off: {name} ends at byte {offset + length:,} of {size:,}", where=url, hint=_HINT)
            if length != torch.Size(shape).numel() * dtype.itemsize:
                raise UserError(f"{name} has {length:,} bytes for shape {shape}", where=url, hint=_HINT)
            tensors[name] = Stored(shape, dtype, partial(read_at, file, offset, shape, dtype, url))
    return tensors


def _shape(message: bytes) -> tuple[int, ...]:
    """Of a TensorShapeProto: its field 2, repeated, has the size in its field 1."""
    return tuple(int(_message(value).get(1, 0)) for number, value in _fields(message) if number == 2)


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("its end is not that of a table")
    _, place = _varints(data, len(data) - _FOOTER, 2)  # of the block of metadata
    (offset, size), _ = _varints(data, place, 2)
    for _, handle in _block(data, offset, size):
        (start, length), _ = _varints(handle, 0, 2)
        yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """A block's keys and values: each key goes on from a beginning of the one before it."""
    if offset + size + _BLOCK_TRAILER > len(data):
        raise ValueError("it is cut off")
    if data[offset + size]:
        raise ValueError("it is compressed")
    (restarts,) = struct.unpack_from("<I", data, offset + size - 4)
    place, end = offset, offset + size - 4 - 4 * restarts
    key = b""
    while place < end:
        (shared, unshared, length), place = _varints(data, place, 3)
        key = key[:shared] + data[place : place + unshared]
        if len(key) > _LONGEST_NAME:  # what two names share takes no room in the file
            raise ValueError(f"a name of {len(key):,} bytes")
        yield key, data[place + unshared : place + unshared + length]
        place += unshared + length


def _varints(data: bytes, place: int, count: int) -> tuple[list[int], int]:
    """Numbers of seven bits per byte, lowest first, and the place after them."""
    entries = []
    for _ in range(count):
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        entries.append(value)
    return entries, place


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields."""
    place = 0
    while place < len(message):
        (tag,), place = _varints(message, place, 1)
        kind = tag & 7
        if kind == 0:
            (value,), place = _varints(message, place, 1)
            yield tag >> 3, value
        elif kind == 2:
            (length,), place = _varints(message, place, 1)
            yield tag >> 3, message[place : place + length]
            place += length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            yield tag >> 3, message[place : place + width]
            place += width
        else:
            raise ValueError(f"a field of kind {kind}")


def _message(message: bytes) -> dict[int, Any]:
    """The fields of a protocol buffer, the last where one is repeated."""
    return dict(_fields(message))
