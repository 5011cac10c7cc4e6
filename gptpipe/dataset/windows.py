"""Where the windows of a stream begin and how many targets they have: back to back, or each inside one document.

Back to back, windows start every `context_length` tokens and hold one token more, which is the next one's first:
every token but the stream's first is a target once. Inside documents, a document's windows do the same from its
first token on, and its last one, which ends with the separator, may be shorter.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

import numpy as np

from gptpipe import storage
from gptpipe.dataset.cache import CHECKSUM, checksum
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError

log = logging.getLogger(__name__)


class Windows(Protocol):
    """The windows of a stretch of a stream, by number.

    Attributes:
        count: how many there are.
        targets: of all of them together.
        whole: whether each has `context_length` targets.
    """

    count: int
    targets: int
    whole: bool

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each window begins in the stream and how many targets it has, each shape (k,), int64."""
        ...


class JoinedWindows:
    """Windows back to back over documents and their separators; a last, shorter one is left out."""

    whole = True

    def __init__(self, start: int, stop: int, context_length: int) -> None:
        self.start, self._context = start, context_length
        self.count = max(0, (stop - start - 1) // context_length)
        self.targets = self.count * context_length

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = self.start + np.asarray(numbers, dtype=np.int64) * self._context
        return starts, np.full(len(starts), self._context, dtype=np.int64)

    def holding(self, stretches: np.ndarray) -> np.ndarray:
        """Numbers of the windows with a target in one of these stretches (begin, end), (n, 2); ascending, int64."""
        begins, ends = stretches[:, 0] - self.start, stretches[:, 1] - self.start
        first = np.maximum(0, -(-begins // self._context) - 1)  # a window's targets begin after its first token
        last = np.minimum(self.count - 1, (ends - 2) // self._context)
        pieces = [np.arange(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True) if b >= a]
        return np.unique(np.concatenate([np.empty(0, np.int64), *pieces]))


class DocumentWindows:
    """Windows that each lie inside one document. The table of them lies beside the decoded tokens."""

    whole = False

    def __init__(self, stream: TokenStream, start: int, stop: int, context_length: int) -> None:
        shards = [
            shard
            for shard in range(len(stream.index))
            if start <= stream.starts[shard] and stream.starts[shard + 1] <= stop
        ]
        self._bases = [int(stream.starts[shard]) for shard in shards]
        self._tables = [_table(stream, shard, context_length, goes_on=shard != shards[-1]) for shard in shards]
        self._firsts = np.cumsum([0, *(len(table) for table in self._tables)])
        self.count = int(self._firsts[-1])
        self.targets = sum(int(table[:, 1].sum(dtype=np.int64)) for table in self._tables)

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts, lengths = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        shards = np.searchsorted(self._firsts, numbers, side="right") - 1
        for i, (number, shard) in enumerate(zip(numbers, shards, strict=True)):
            begin, length = self._tables[shard][number - self._firsts[shard]]
            starts[i], lengths[i] = self._bases[shard] + int(begin), length
        return starts, lengths

    def holding(self, stretches: np.ndarray) -> np.ndarray:
        """Numbers of the windows that begin in one of these stretches (begin, end), (n, 2); ascending, int64."""
        pieces = [np.empty(0, np.int64)]
        for first, base, table in zip(self._firsts.tolist(), self._bases, self._tables, strict=False):
            begins = base + table[:, 0].astype(np.int64)
            stretch = np.searchsorted(stretches[:, 0], begins, side="right") - 1
            inside = (stretch >= 0) & (begins < stretches[np.maximum(stretch, 0), 1])
            pieces.append(first + np.flatnonzero(inside))
        return np.concatenate(pieces)


class SomeWindows:
    """Some of the windows of a stretch.

    Args:
        numbers: of the windows, ascending. others: whether all but these are meant.
    """

    def __init__(self, windows: Windows, numbers: np.ndarray, *, others: bool = False) -> None:
        self._windows, self._numbers = windows, numbers
        # how many of the others lie before each of the numbers
        self._before = numbers - np.arange(len(numbers)) if others else None
        self.count = windows.count - len(numbers) if others else len(numbers)
        self.whole = windows.whole
        own = int(windows.places(numbers)[1].sum())
        self.targets = windows.targets - own if others else own

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.asarray(numbers, dtype=np.int64)
        if self._before is None:
            return self._windows.places(self._numbers[numbers])
        return self._windows.places(numbers + np.searchsorted(self._before, numbers, side="right"))


def _table(stream: TokenStream, shard: int, context_length: int, *, goes_on: bool) -> np.ndarray:
    """(place in the shard, targets) of every window of a shard, shape (n, 2), uint32."""
    path = stream.window_table(shard, context_length, goes_on)
    table = _stored(path)
    if table is None:
        table = document_windows(stream.shard(shard), stream.end_of_text, context_length, goes_on=goes_on)
        with storage.new_file(path) as temporary, temporary.open("wb") as file:
            file.write(table.tobytes() + np.array([checksum(table)], CHECKSUM).tobytes())
        stored = _stored(path)
        table = table if stored is None else stored  # mapped, it is in memory once for all ranks
    return table


def _stored(path: Path) -> np.ndarray | None:
    """A table as its file has it, mapped; None where there is no file, or a damaged one."""
    try:
        content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (FileNotFoundError, ValueError):  # ValueError: it is empty
        return None
    table, end = content[: -CHECKSUM.itemsize], content[-CHECKSUM.itemsize :]
    if len(table) % 8 == 0 and end.tobytes() == np.array([checksum(table)], CHECKSUM).tobytes():
        return table.view(np.uint32).reshape(-1, 2)
    log.warning("the cache is damaged, and what it held is made again: %s", path)
    return None


def document_windows(tokens: np.ndarray, separator: int, context_length: int, *, goes_on: bool = False) -> np.ndarray:
    """(start, targets) of the windows of documents that each end with a separator, shape (n, 2), uint32.

    Args:
        goes_on: whether more tokens follow these, the first of which is the last one's target if no separator is.
    """
    ends = np.flatnonzero(tokens == separator)  # nothing else is that token: in text it is written out
    starts = np.concatenate([[0], ends + 1])
    targets = np.append(ends, len(tokens) - 1 + goes_on * (len(tokens) - 1 not in ends[-1:])) - starts
    counts = np.maximum(0, -(-targets // context_length))
    document = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = starts[document] + within * context_length
    lengths = np.minimum(context_length, targets[document] - within * context_length)
    return np.stack([begin, lengths], axis=1).astype(np.uint32)


def evaluation_windows(length: int, context_length: int, stride: int = 0, max_tokens: int = 0) -> np.ndarray:
    """Windows (begin, length, scored) over a stream of `length` tokens, shape (n, 3), int64.

    A window reads the tokens begin … begin + length - 1 and predicts the ones after each; the last `scored` of these
    count. Every token but the stream's first is a target once. With a stride shorter than the window, all but the
    first window's have at least `context_length - stride` tokens before them (what `transformers` documents as the
    perplexity of models of fixed length).

    Args:
        stride: targets from one window's beginning to the next's; 0 is the context.
        max_tokens: with a limit, that many tokens' worth of windows, spread evenly over the stream.
    """
    stride = stride or context_length
    targets = length - 1
    count = max(0, -(-(targets - context_length) // stride)) + 1 if targets > 0 else 0
    begin = np.arange(count, dtype=np.int64) * stride
    ends = np.minimum(begin + context_length, targets)
    scored = np.diff(ends, prepend=0)
    windows = np.stack([begin, ends - begin, scored], axis=1)
    most = max(1, max_tokens // stride)
    if max_tokens and most < count:
        windows = windows[np.arange(most) * count // most]
    return windows


def check_count(windows: Windows, stream: TokenStream, context_length: int) -> None:
    """A UserError when there is no window."""
    if windows.count < 1:
        raise UserError(
            f"the {stream.split} split has {stream.length} tokens, fewer than the context of "
            f"{context_length} and one more",
            where=stream.dataset.url,
            hint="shorten model.context_length or give more text",
        )
