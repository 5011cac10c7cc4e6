"""What shards hold of documents, each known by a hash of its tokens: two that say the same have the same hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gptpipe.dataset.cache import read_shard
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.rows import ShardFile, ShardReader


@dataclass(frozen=True)
class Piece:
    """What a shard's file holds of a document: its place there and its length, the separator counted."""

    name: str
    begin: int
    length: int
    hash: int


def pieces_of(dataset: Dataset, files: Iterable[ShardFile]) -> Iterator[Piece]:
    """The documents in these shards, each file read once.

    Raises:
        UserError: a shard is gone or damaged.
    """
    for file in files:
        state, name, begin, place = hashlib.blake2b(digest_size=8), "", 0, 0
        for row in ShardReader(read_shard(dataset.url, file)).rows():
            if row.document_id != name and place > begin:  # the document goes on in another file
                yield _piece(name, begin, place, state)
                state, begin = hashlib.blake2b(digest_size=8), place
            name = row.document_id
            state.update(row.tokens.tobytes())
            place += len(row.tokens) + row.last
            if row.last:
                yield _piece(name, begin, place, state)
                state, begin = hashlib.blake2b(digest_size=8), place
        if place > begin:
            yield _piece(name, begin, place, state)


def hashes_of(pieces: Iterable[Piece]) -> np.ndarray:
    """Their hashes, uint64, shape (pieces,)."""
    return np.fromiter((piece.hash for piece in pieces), dtype=np.uint64)


def _piece(name: str, begin: int, end: int, state: hashlib.blake2b) -> Piece:
    return Piece(name, begin, end - begin, int.from_bytes(state.digest(), "little"))
