"""Which windows of a stream are the samples, and in what order: all alike, by corpus, or new text before old."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from gptpipe.config import TrainConfig
from gptpipe.dataset.order import Mixture, TwoLevels, windows_of
from gptpipe.dataset.rows import ROW_GROUP_TOKENS
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import DocumentWindows, JoinedWindows, SomeWindows, Windows, check_count
from gptpipe.errors import UserError


class SampleOrder:
    """s(i): which windows of a stream are the samples, in what order.

    Args:
        config: its `shuffle`, `shuffle_blocks`, `join_documents`, `mixture`, `replay` and `seed` decide.
        news: (begin, end) of the stretches that are new since an earlier dataset, (n, 2). A share of `replay` of the
            samples is then drawn from the other windows, and the rest from those that hold new text.

    Raises:
        UserError: there is no window, or the mixture names no corpus that there is.
    """

    def __init__(
        self, stream: TokenStream, context_length: int, config: TrainConfig, news: np.ndarray | None = None
    ) -> None:
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
        self._part_names, shares = [""], [1.0]
        if config.mixture:
            weights = _weights(config.mixture, stream)
            self._part_names, shares = list(weights), list(weights.values())
            numbers = [stream.corpora.index(name) for name in weights]
            stretches = [(int(stream.corpus_starts[c]), int(stream.corpus_starts[c + 1])) for c in numbers]
            self._configuration += "," + ",".join(f"{name}={weight!r}" for name, weight in weights.items())
        whole: list[JoinedWindows | DocumentWindows] = [
            JoinedWindows(start, stop, context_length)
            if config.join_documents
            else DocumentWindows(stream, start, stop, context_length)
            for start, stop in stretches
        ]
        for windows in whole:
            check_count(windows, stream, context_length)
        self._windows: list[Windows] = [*whole]
        if news is not None:
            shares = self._part_by_age(whole, shares, news, config.replay)
        if config.mixture or len(self._windows) > 1:  # shares are of tokens, and a window in a document may have few
            self._mixture = Mixture(
                [
                    share * windows.count * context_length / windows.targets
                    for share, windows in zip(shares, self._windows, strict=True)
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

    def _part_by_age(
        self, whole: list[JoinedWindows | DocumentWindows], shares: list[float], news: np.ndarray, replay: float
    ) -> list[float]:
        """Part the windows of each corpus that is drawn from into those with new text and the others; their shares.

        A corpus that has only one of the two keeps its share.
        """
        known = hashlib.sha256(np.ascontiguousarray(news, dtype="<i8").tobytes()).hexdigest()
        self._configuration += f",replay={replay!r},news={known[:32]}"
        parts: list[tuple[str, Windows, float]] = []
        for name, windows, share in zip(self._part_names, whole, shares, strict=True):
            new = windows.holding(news)
            if len(new) in (0, windows.count):
                parts.append((name, windows, share))
                continue
            parts.append((f"{name}/new", SomeWindows(windows, new), share * (1 - replay)))
            if replay:
                parts.append((f"{name}/old", SomeWindows(windows, new, others=True), share * replay))
        self._part_names = [name for name, _, _ in parts]
        self._windows = [windows for _, windows, _ in parts]
        return [share for _, _, share in parts]

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
