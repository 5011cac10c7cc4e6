"""A split, or one corpus of it, as one stream of tokens on the local disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gptpipe.cores import usable_cores
from gptpipe.dataset.cache import Evicted, PartialShard, TokenCache, WholeShard
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.rows import ShardFile
from gptpipe.errors import UserError

OPEN = 4096  # shards mapped at once; a process may have 65,530 mappings


class TokenStream:
    """All tokens of a split in the order of the index, `<|endoftext|>` after every document.

    Shards are decoded into the local cache when they are first needed there, whole by `prepare`, otherwise a row
    group at a time.

    Attributes:
        length: tokens in the stream, separators counted.
        bytes: UTF-8 bytes of the text it holds.
        corpora: names of the corpora in it, in their order.
        corpus_starts: where each one's tokens begin, and the end, shape (corpora + 1,), int64.
    """

    def __init__(self, dataset: Dataset, split: str, cache: TokenCache) -> None:
        self.dataset = dataset
        self.split = split
        self.index = dataset.index(split)
        if not len(self.index):
            have = dataset.index().splits()
            raise UserError(f"the dataset has no {split} split", where=dataset.url, hint=f"it has {', '.join(have)}")
        tokenizer = dataset.load_tokenizer()
        self.end_of_text = tokenizer.end_of_text
        self.dtype = np.dtype(tokenizer.dtype)
        self.starts = np.concatenate([[0], np.cumsum(self.index.stream_lengths)])
        self.length = int(self.starts[-1])
        self.bytes = self.index.bytes
        self.corpora = self.index.corpora()
        changes = np.flatnonzero(np.diff(self.index.corpus_codes())) + 1
        self.corpus_starts = self.starts[np.concatenate([[0], changes, [len(self.index)]])]
        self.cache = cache
        self._lock = threading.RLock()
        self._open: OrderedDict[int, WholeShard | PartialShard] = OrderedDict()

    def prepare(self) -> None:
        """Decode every shard that is not in the cache yet, so that nothing waits for one later.

        Raises:
            UserError: the stream is larger than the cache may be, or a shard is damaged.
        """
        size = self.length * self.dtype.itemsize
        if size > self.cache.limit:
            raise UserError(
                f"the {self.split} split is {size / 1e9:.1f} GB decoded, the local cache may hold "
                f"{self.cache.limit / 1e9:.1f}",
                where=self.dataset.url,
                hint="raise GPTPIPE_CACHE_GIGABYTES, or shuffle in two levels: train.shuffle=two-level",
            )
        missing = [
            (file, int(length))
            for file, length in zip(self.index, np.diff(self.starts), strict=True)
            if not self.cache.has_whole(file, int(length) * self.dtype.itemsize)
        ]
        self.cache.make_room(sum(length for _, length in missing) * self.dtype.itemsize)

        def decode(what: tuple[ShardFile, int]) -> None:
            self.cache.decode_whole(what[0], self.dataset.url, what[1], self.dtype, self.end_of_text)

        missing.sort(key=lambda what: -what[1])  # the longest first, so that no core is left with one at the end
        with ThreadPoolExecutor(1 + usable_cores()) as pool:
            for _ in pool.map(decode, missing):
                pass

    def shard(self, number: int) -> np.ndarray:
        """All tokens of one file of the index."""
        return self.read(int(self.starts[number]), int(self.starts[number + 1]))

    def window_table(self, number: int, context_length: int, goes_on: bool) -> Path:
        """Where the table of a shard's windows is kept, beside its tokens."""
        name = f"{self.index[number].sha256}-{context_length}{'-goes-on' if goes_on else ''}.windows"
        return self.cache.folder / name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (exclusive), shape (stop - start,)."""
        pieces = []
        shard = int(self.starts.searchsorted(start, side="right")) - 1
        while start < stop:
            base, end = int(self.starts[shard]), min(stop, int(self.starts[shard + 1]))
            held = self._open.get(shard)
            piece = None if held is None else held.get(start - base, end - base)
            pieces.append(self._decoded(shard, start - base, end - base) if piece is None else piece)
            start, shard = end, shard + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, self.dtype)])

    def _decoded(self, shard: int, start: int, stop: int) -> np.ndarray:
        """Tokens of a shard that is not open, or not decoded or not compared with their checksum so far."""
        with self._lock:
            while True:
                for number, other in list(self._open.items()):
                    if isinstance(other, PartialShard) and other.is_gone:
                        del self._open[number]  # what is mapped of a removed file still takes disk
                held = self._open.get(shard)
                if held is None:
                    held = self._hold(shard)
                if isinstance(held, WholeShard):
                    if held.verify(start, stop):
                        return held.tokens[start:stop]
                    del self._open[shard]
                    continue
                try:
                    return held.decode(start, stop)
                except Evicted:
                    continue

    def _hold(self, shard: int) -> WholeShard | PartialShard:
        """Map a shard: whole if it is there as a whole, otherwise as far as it is asked for."""
        while len(self._open) >= OPEN:
            self._open.popitem(last=False)
        file, length = self.index[shard], int(self.starts[shard + 1] - self.starts[shard])
        held: WholeShard | PartialShard
        try:
            held = WholeShard(self.cache, file, length, self.dtype)
        except (FileNotFoundError, ValueError):  # not decoded as a whole, or cut off by somebody
            held = PartialShard(self.cache, file, self.dataset.url, length, self.dtype, self.end_of_text)
        self._open[shard] = held
        return held
