"""Text that a model gives back word for word: samples looked up in all of the text that it was trained on.

Every run of `least` tokens holds a whole block of half as many that begins at a multiple of its length. So each block
of the training text is hashed once and looked up among the few hashes of the samples; what has the same hash is
compared token by token, and followed to both sides. Nothing is left out, and nothing has to be built or kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptpipe.dataset.locate import documents_at
from gptpipe.dataset.stream import TokenStream
from gptpipe.generation.degenerate import is_blank
from gptpipe.generation.generate import Sample
from gptpipe.progress import NowAndThen
from gptpipe.tokenizer import Tokenizer
from gptpipe.wording import counted, duration

_CHUNK = 1 << 22  # tokens
_NEAR = 4 * _CHUNK  # tokens that are read at once to look around places
_BATCH = 4096  # places
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Copy:
    """The longest piece of a sample that stands in the training text as it is.

    Attributes:
        tokens: its length. text: the piece. prompt: what the sample continues.
        document: `corpus:document id` of the first document that holds it.
    """

    tokens: int
    text: str
    prompt: str
    document: str


def find_copies(samples: Sequence[Sample], stream: TokenStream, tokenizer: Tokenizer, least: int) -> list[Copy]:
    """The longest copy of each sample that has one of `least` tokens or more, the longest first.

    The prompt does not count, nor does a piece that says nothing, such as blank lines. All of the stream is read once.

    Args:
        stream: what the model was trained on. tokenizer: of both.
        least: shortest copy that counts, 2 tokens or more.
    """
    block = (least + 1) // 2
    rows = [np.asarray(sample.tokens, dtype=np.int64) for sample in samples]
    pieces = [(row, start) for row, ids in enumerate(rows) for start in range(len(ids) - block + 1)]
    if not pieces:
        return []
    hashes = _hashes(np.stack([rows[row][start : start + block] for row, start in pieces]))
    order = np.argsort(hashes, kind="stable")
    longest: dict[int, tuple[int, int, int]] = {}  # of a sample: length, where in it, where in the stream
    for number, places in _same(stream, hashes[order], block):
        row, start = pieces[int(order[number])]
        for length, begins, at in _around(stream, rows[row], start, places, block):
            if length < least or length <= longest.get(row, (0, 0, 0))[0]:
                break
            if not is_blank(tokenizer.decode(rows[row][begins : begins + length].tolist())):
                longest[row] = length, begins, at
    copies = []
    for row, (length, begins, at) in longest.items():
        text = tokenizer.decode(rows[row][begins : begins + length].tolist())
        document = documents_at(stream, np.array([at]))[0]
        copies.append(Copy(length, text, samples[row].prompt, document))
    return sorted(copies, key=lambda copy: -copy.tokens)


def _hashes(blocks: np.ndarray) -> np.ndarray:
    """A number for each row of tokens, (n, b) → (n,), uint64: a polynomial modulo 2^64."""
    total = np.zeros(len(blocks), dtype=np.uint64)
    for column in blocks.T:
        total = (total + column.astype(np.uint64) + np.uint64(1)) * _FACTOR
        total ^= total >> np.uint64(29)
    return total


def _same(stream: TokenStream, hashes: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of a hash, places in the stream of blocks with that hash), a stretch of the stream at a time.

    Args:
        hashes: sorted; one may be there several times.
    """
    size = _CHUNK // block * block
    say = NowAndThen()
    for begin in range(0, stream.length - block + 1, size):
        ids = stream.read(begin, min(begin + size, stream.length))
        there = _hashes(ids[: len(ids) // block * block].reshape(-1, block))
        first, after = np.searchsorted(hashes, there, "left"), np.searchsorted(hashes, there, "right")
        known = np.flatnonzero(after > first)
        for one in np.unique(first[known]).tolist():
            those = known[first[known] == one]
            for number in range(one, int(after[those[0]])):
                yield number, begin + those * block

        def how_far(seconds: float, done: int = begin + len(ids)) -> str:
            left = duration(seconds * (stream.length - done) / done)
            return f"looked for copies in {done:,} of {counted(stream.length, 'token')}  {left} left"

        say(how_far)


def _around(
    stream: TokenStream, row: np.ndarray, start: int, places: np.ndarray, block: int
) -> list[tuple[int, int, int]]:
    """How long the copies are that hold the block, where each begins in the sample and in the stream; longest first.

    Of several that begin and end alike in the sample there is the first.

    Args:
        places: where the block begins in the stream, ascending.
    """
    found: dict[tuple[int, int], int] = {}
    for batch in range(0, len(places), _BATCH):
        some = places[batch : batch + _BATCH]
        columns = np.arange(len(row)) - start
        where = some[:, None] + columns  # (n, len(row)): what stands in the stream beside every token of the sample
        inside = (where >= 0) & (where < stream.length)
        low, high = max(0, int(some[0]) - start), min(stream.length, int(some[-1]) + len(row) - start)
        near = stream.read(low, high) if high - low <= _NEAR else None
        if near is not None:
            tokens = near[np.clip(where - low, 0, len(near) - 1)]
        else:
            tokens = np.stack([_read(stream, int(place) - start, len(row)) for place in some])
        same = inside & (tokens == row)
        whole = same[:, start : start + block].all(axis=1)
        left = np.cumprod(same[:, :start][:, ::-1], axis=1).sum(axis=1)
        right = np.cumprod(same[:, start + block :], axis=1).sum(axis=1)
        for each in np.flatnonzero(whole).tolist():
            key = int(left[each]), int(right[each])
            found.setdefault(key, int(some[each]))
    lengths = [(block + left + right, start - left, place - left) for (left, right), place in found.items()]
    return sorted(lengths, reverse=True)


def _read(stream: TokenStream, begin: int, count: int) -> np.ndarray:
    """Tokens of the stream, zeros before its beginning and after its end."""
    low, high = max(0, begin), min(stream.length, begin + count)
    tokens = np.zeros(count, dtype=np.int64)
    tokens[low - begin : high - begin] = stream.read(low, high)
    return tokens
