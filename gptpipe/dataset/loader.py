"""Batches (inputs, targets) of shape (B, T), targets one to the right: shuffled for training, in order to evaluate.

The sequence of training samples s(i) is a pure function of the dataset's id, the seed and the loader's
configuration: context, whether documents are joined, the weights of the corpora, and the shuffle. So the whole state
of a loader is one number, `samples_seen`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from gptpipe.config import TrainConfig
from gptpipe.dataset.sample_order import SampleOrder
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import evaluation_windows
from gptpipe.errors import UserError
from gptpipe.model.loss import IGNORED

Batch = tuple[torch.Tensor, torch.Tensor]
_CHUNK_WINDOWS = 256  # prepared at once in the background
_AHEAD = 2  # chunks prepared ahead
_PATIENCE = 0.05  # seconds after which a waiting thread looks whether it is still needed


class TrainBatch(NamedTuple):
    """One rank's part of a global batch: int64 tensors of shape (B, T), padded targets being `IGNORED`.

    Attributes:
        tokens: targets of the whole global batch that are scored.
        corpora: how many targets this rank's windows have, by the corpus in which a window begins, shape (corpora,).
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    tokens: int
    corpora: np.ndarray


class TrainLoader:
    """The training samples of one rank, prepared by a thread in the background.

    Attributes:
        samples_seen: samples read by all ranks together; `seek` goes to any place at once.
        seconds_waited: time that was spent waiting in here.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        context_length: int,
        config: TrainConfig,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        local_world_size: int = 1,
        news: np.ndarray | None = None,
    ) -> None:
        check_ranks(config.batch_size, world_size)
        self.order = SampleOrder(stream, context_length, config, news)
        self._stream, self._context, self._batch = stream, context_length, config.batch_size
        self._share = (rank * config.batch_size // world_size, (rank + 1) * config.batch_size // world_size)
        self._local = (local_rank, local_world_size)
        self._batches = max(1, _CHUNK_WINDOWS // max(1, self._share[1] - self._share[0]))
        self._ready: list[TrainBatch] = []
        self._worker: _Worker | None = None
        self.samples_seen = 0
        self.seconds_waited = 0.0

    def seek(self, samples: int) -> None:
        """Go on from the sample of that number."""
        self.close()
        self._ready.clear()
        self.samples_seen = samples

    def next_batch(self) -> TrainBatch:
        """This rank's part of the next global batch."""
        began = time.perf_counter()
        if not self._ready:
            if self._worker is None:
                self._worker = _Worker(self, self.samples_seen)
            self._ready = self._worker.take()
            self._ready.reverse()
        batch = self._ready.pop()
        self.samples_seen += self._batch
        self.seconds_waited += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """End the thread in the background."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def chunk(self, samples_seen: int) -> list[TrainBatch]:
        """The next few batches from a place on."""
        first, last = self._share
        size = last - first
        offsets = np.arange(self._batches, dtype=np.int64)[:, None] * self._batch + samples_seen
        mine = (offsets + np.arange(first, last)).reshape(-1)
        starts, lengths = self.order.places(mine)
        tokens = np.full(self._batches, self._batch * self._context, dtype=np.int64)
        if not self.order.whole():
            _, all_lengths = self.order.places((offsets + np.arange(self._batch)).reshape(-1))
            tokens = all_lengths.reshape(self._batches, -1).sum(axis=1)
        inputs, targets = gather(self._stream, starts, lengths, self._context)
        corpora = np.searchsorted(self._stream.corpus_starts, starts, side="right") - 1
        batches = []
        for i in range(self._batches):
            part = slice(i * size, (i + 1) * size)
            drawn = np.bincount(corpora[part], weights=lengths[part], minlength=len(self._stream.corpora))
            batches.append(TrainBatch(inputs[part], targets[part], int(tokens[i]), drawn))
        return batches

    @property
    def samples_a_chunk(self) -> int:
        return self._batches * self._batch

    def fetch_pool(self, sample: int, stopped: threading.Event) -> None:
        """Have this rank's share of the blocks decoded that lie in the pool of a sample."""
        rank, world = self._local
        for start, stop in self.order.ahead(sample)[rank::world]:
            if stopped.is_set():
                return
            self._stream.read(start, stop)


class _Worker:
    """A thread that prepares chunks ahead, and in two levels another that decodes this pool and the next."""

    def __init__(self, loader: TrainLoader, samples_seen: int) -> None:
        self._loader = loader
        self._queue: queue.Queue[list[TrainBatch]] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._next = samples_seen
        self._threads = [threading.Thread(target=self._guarded, args=(self._prepare,), name="loader", daemon=True)]
        if loader.order.pool_samples():
            fetch = threading.Thread(target=self._guarded, args=(self._fetch,), name="loader-fetch", daemon=True)
            self._threads.append(fetch)
        for thread in self._threads:
            thread.start()

    def take(self) -> list[TrainBatch]:
        """The next chunk; what went wrong in the background is raised here."""
        while True:
            try:
                return self._queue.get(timeout=_PATIENCE)
            except queue.Empty:
                if self._error is not None:
                    raise self._error from None

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def _prepare(self) -> None:
        while not self._stopped.is_set():
            chunk = self._loader.chunk(self._next)
            while not self._stopped.is_set():
                try:
                    self._queue.put(chunk, timeout=_PATIENCE)
                    break
                except queue.Full:
                    continue
            self._next += self._loader.samples_a_chunk

    def _fetch(self) -> None:
        """Decode the pool that is read and the one after it; the reader itself decodes what is not there yet."""
        step, done = self._loader.order.pool_samples(), -1
        while not self._stopped.wait(_PATIENCE):
            pool = self._next // step
            for ahead in (pool, pool + 1):
                if ahead > done and not self._stopped.is_set():
                    self._loader.fetch_pool(max(self._next, ahead * step), self._stopped)
                    done = ahead


def check_ranks(batch_size: int, world_size: int) -> None:
    """A UserError when a rank would have no window of a batch."""
    if batch_size < world_size:
        raise UserError(
            f"{world_size} ranks share a batch of {batch_size} windows",
            where="train.batch_size",
            hint="raise it to the number of ranks, or use fewer ranks",
        )


def gather(stream: TokenStream, starts: np.ndarray, lengths: np.ndarray, context_length: int) -> Batch:
    """Windows as (inputs, targets), each (len(starts), context_length), int64; the rest of a short one is padding."""
    rows = np.full((len(starts), context_length + 1), stream.end_of_text, dtype=stream.dtype)
    read = stream.read
    for row, start, length in zip(rows, starts.tolist(), lengths.tolist(), strict=True):
        row[: length + 1] = read(start, start + length + 1)
    whole = torch.from_numpy(rows.astype(np.int64))
    inputs, targets = whole[:, :-1], whole[:, 1:]
    if len(lengths) and lengths.min() < context_length:
        padding = torch.arange(context_length)[None] >= torch.from_numpy(lengths)[:, None]
        targets = targets.masked_fill(padding, IGNORED)
    return inputs, targets


def evaluation_batches(
    stream: TokenStream,
    context_length: int,
    batch_size: int,
    max_tokens: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Plain windows in order, this rank's share of them, `batch_size` at a time and of equal length in a batch."""
    mine = evaluation_windows(stream.length, context_length, max_tokens=max_tokens)[rank::world_size]
    whole = [start for start, size, _ in mine if size == context_length]
    for i in range(0, len(whole), batch_size):
        starts = np.array(whole[i : i + batch_size])
        yield gather(stream, starts, np.full(len(starts), context_length), context_length)
    for start, size, _ in mine:
        if size < context_length:
            yield gather(stream, np.array([start]), np.array([size]), size)
