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
    for place, number in _same(stream, hashes[order], block):
        row, start = pieces[int(order[number])]
        if row in longest and longest[row][0] == len(rows[row]):
            continue
        length, begins, at = _around(stream, rows[row], start, place, block)
        if length < least or length <= longest.get(row, (0, 0, 0))[0]:
            continue
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


def _same(stream: TokenStream, hashes: np.ndarray, block: int) -> Iterator[tuple[int, int]]:
    """(place in the stream, number of the hash) of every block with one of these hashes, which are sorted."""
    size = _CHUNK // block * block
    say = NowAndThen()
    for begin in range(0, stream.length - block + 1, size):
        ids = stream.read(begin, min(begin + size, stream.length))
        there = _hashes(ids[: len(ids) // block * block].reshape(-1, block))
        first, after = np.searchsorted(hashes, there, "left"), np.searchsorted(hashes, there, "right")
        for number in np.flatnonzero(after > first).tolist():
            for each in range(int(first[number]), int(after[number])):
                yield begin + number * block, each

        def how_far(seconds: float, done: int = begin + len(ids)) -> str:
            left = duration(seconds * (stream.length - done) / done)
            return f"looked for copies in {done:,} of {counted(stream.length, 'token')}  {left} left"

        say(how_far)


def _around(stream: TokenStream, row: np.ndarray, start: int, place: int, block: int) -> tuple[int, int, int]:
    """How long the copy is that holds the block, where it begins in the sample, and where in the stream."""
    before = min(start, place)
    after = min(len(row) - start, stream.length - place)
    same = row[start - before : start + after] == stream.read(place - before, place + after)
    if not same[before : before + block].all():
        return 0, start, place
    other = np.flatnonzero(~same)
    cut = int(np.searchsorted(other, before))
    begins = int(other[cut - 1]) + 1 if cut else 0
    ends = int(other[cut]) if cut < len(other) else len(same)
    return ends - begins, start - before + begins, place - before + begins
