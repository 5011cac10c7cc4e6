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
from gptpipe.dataset.order import Mixture, TwoLevels, windows_of
from gptpipe.dataset.rows import ROW_GROUP_TOKENS
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import DocumentWindows, JoinedWindows, Windows, check_count, evaluation_windows
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


class SampleOrder:
    """s(i): which windows of a stream are the samples, in what order.

    Args:
        config: its `shuffle`, `shuffle_blocks`, `join_documents`, `mixture` and `seed` decide.

    Raises:
        UserError: there is no window, or the mixture names no corpus that there is.
    """

    def __init__(self, stream: TokenStream, context_length: int, config: TrainConfig) -> None:
        self._stream, self._seed = stream, config.seed
        self._configuration = (
            f"context={context_length},join={'documents' if config.join_documents else 'none'},shuffle={config.shuffle}"
        )
        self._levels: TwoLevels | None = None
        if config.shuffle == "two-level":
            self._levels = TwoLevels(max(1, ROW_GROUP_TOKENS // context_length), config.shuffle_blocks)
            self._configuration += f",block={self._levels.block},pool={self._levels.pool}"
        stretches = [(0, stream.length)]
        self.names = stream.corpora
        self._mixture: Mixture | None = None
        self._part_names = [""]
        if config.mixture:
            weights = _weights(config.mixture, stream)
            self._part_names = list(weights)
            numbers = [stream.corpora.index(name) for name in weights]
            stretches = [(int(stream.corpus_starts[c]), int(stream.corpus_starts[c + 1])) for c in numbers]
            self._configuration += "," + ",".join(f"{name}={weight!r}" for name, weight in weights.items())
        self._windows: list[Windows] = [
            JoinedWindows(start, stop, context_length)
            if config.join_documents
            else DocumentWindows(stream, start, stop, context_length)
            for start, stop in stretches
        ]
        for windows in self._windows:
            check_count(windows, stream, context_length)
        if config.mixture:  # weights are of tokens, and a window inside a document may have few
            self._mixture = Mixture(
                [
                    weight * windows.count * context_length / windows.targets
                    for weight, windows in zip(weights.values(), self._windows, strict=True)
                ]
            )
        self._context = context_length
        self.count = sum(windows.count for windows in self._windows)

    def places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the stream each sample begins and how many targets it has, each shape (k,), int64."""
        starts, lengths = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        for part, here, within in self._split(samples):
            starts[here], lengths[here] = self._windows[part].places(self._numbers(part, within))
        return starts, lengths

    def whole(self) -> bool:
        """Whether every sample has as many targets as the context is long."""
        return all(windows.whole for windows in self._windows)

    def ahead(self, sample: int) -> list[tuple[int, int]]:
        """The stretches of the stream that hold the pool of blocks a sample lies in; none in one level."""
        if self._levels is None:
            return []
        parts = []
        for part, windows in enumerate(self._windows):
            number = sample
            if self._mixture is not None:
                number = sample // Mixture.CYCLE * int(self._mixture.counts[part])
            epoch, place = divmod(number, windows.count)
            pool = min(place // (self._levels.block * self._levels.pool), self._levels.pools(windows.count) - 1)
            identity, seed, configuration = self._key(part)
            blocks = self._levels.blocks_of(epoch, pool, windows.count, identity, seed, configuration)
            for block in blocks:
                first, _ = windows.places(np.array([block * self._levels.block]))
                stop = min(int(first[0]) + self._levels.block * self._context + 1, self._stream.length)
                parts.append((int(first[0]), stop))
        return parts

    def pool_samples(self) -> int:
        """Samples after which another pool of blocks begins, roughly; 0 in one level."""
        if self._levels is None:
            return 0
        span = self._levels.block * self._levels.pool
        most = int(self._mixture.counts.max()) if self._mixture else Mixture.CYCLE
        return span * Mixture.CYCLE // most

    def _split(self, samples: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(part, which of the samples come from it, their numbers in it)."""
        if self._mixture is None:
            yield 0, np.arange(len(samples)), np.asarray(samples, dtype=np.int64)
            return
        parts, within = self._mixture.split(samples, self._stream.dataset.id, self._seed, self._configuration)
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            yield int(part), here, within[here]

    def _key(self, part: int) -> tuple[str, int, str]:
        name = self._part_names[part]
        return self._stream.dataset.id, self._seed, self._configuration + (f",corpus={name}" if name else "")

    def _numbers(self, part: int, samples: np.ndarray) -> np.ndarray:
        order = self._levels.windows_of if self._levels else windows_of
        return order(samples, self._windows[part].count, *self._key(part))


def _weights(mixture: dict[str, float], stream: TokenStream) -> dict[str, float]:
    """The weights of the corpora that are drawn from, in the order of the dataset."""
    for name in mixture:
        if name not in stream.corpora:
            raise UserError(
                f"the {stream.split} split has no corpus {name!r}",
                where="train.mixture",
                hint=f"it has {', '.join(stream.corpora)}",
            )
    if missing := [name for name in stream.corpora if name not in mixture]:
        raise UserError(
            f"no weight for {', '.join(missing)}", where="train.mixture", hint="give every corpus one; 0 leaves it out"
        )
    return {name: mixture[name] for name in stream.corpora if mixture[name]}


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
    ) -> None:
        check_ranks(config.batch_size, world_size)
        self.order = SampleOrder(stream, context_length, config)
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
