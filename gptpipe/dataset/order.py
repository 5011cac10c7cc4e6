"""The order of samples: one infinite sequence s(i) of windows, a pure function of its arguments.

Sample i lies in epoch i // n at place i % n, where n is the number of windows, and the window there is a keyed
permutation of the place. So the state of a loader is one number, and world size, micro-batch and workers
cannot matter.

The permutation is a balanced Feistel network over the smallest even number of bits that holds n, with cycle
walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a value outside [0, n) is permuted
again until it falls inside. It needs no array of n entries. The round function is the mixer of splitmix64
(Steele, Lea and Flood, 2014). The values are pinned by golden vectors in the tests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

ROUNDS = 8


def epoch_keys(dataset_id: str, seed: int, configuration: str, epoch: int) -> np.ndarray:
    """The round keys of an epoch's permutation, shape (ROUNDS,), uint64."""
    text = f"gptpipe order 1|{dataset_id}|{seed}|{configuration}|{epoch}"
    return np.frombuffer(hashlib.sha512(text.encode()).digest(), dtype="<u8").astype(np.uint64)[:ROUNDS]


def permute(indices: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """The places [0, n) that a keyed permutation of [0, n) gives to `indices`.

    Args:
        indices: shape (k,), values in [0, n).
        n: size of the domain, up to 2**62.
        keys: shape (ROUNDS,), uint64.

    Returns:
        shape (k,), int64.
    """
    half = max(1, ((max(n - 1, 1)).bit_length() + 1) // 2)
    values = np.asarray(indices, dtype=np.uint64).copy()
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """One pass of the network over values of 2 * half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = _mix(right ^ key)
        mixed &= mask
        mixed ^= left
        left, right = right, mixed
    return (left << shift) | right


# of splitmix64
_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def _mix(x: np.ndarray) -> np.ndarray:
    """The mixer of splitmix64, in place of `x`, shape (k,), uint64, which wraps around without a word."""
    x += _STEP
    x ^= x >> _SHIFTS[0]
    x *= _FIRST
    x ^= x >> _SHIFTS[1]
    x *= _SECOND
    x ^= x >> _SHIFTS[2]
    return x


def windows_of(samples: np.ndarray, windows: int, dataset_id: str, seed: int, configuration: str) -> np.ndarray:
    """s(i) for every i in `samples` (shape (k,), any order): the number of the window, shape (k,), int64."""
    samples = np.asarray(samples, dtype=np.int64)
    epochs, places = samples // windows, samples % windows
    images = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        images[here] = permute(places[here], windows, epoch_keys(dataset_id, seed, configuration, int(epoch)))
    return images


@dataclass(frozen=True)
class TwoLevels:
    """A shuffle that touches little at a time: blocks of neighbouring windows, then windows within a pool of blocks.

    The blocks of an epoch are permuted; each run of a fixed number of them is a pool, whose windows are permuted among
    themselves. Windows after the last whole block belong to the last pool.

    Attributes:
        block: windows of a block.
        pool: blocks of a pool.
    """

    block: int
    pool: int

    def pools(self, windows: int) -> int:
        return max(1, -(-(windows // self.block) // self.pool))

    def windows_of(
        self, samples: np.ndarray, windows: int, dataset_id: str, seed: int, configuration: str
    ) -> np.ndarray:
        """s(i) for every i in `samples`, as the function of that name does for one level."""
        samples = np.asarray(samples, dtype=np.int64)
        order = np.empty_like(samples)
        span, last = self.block * self.pool, self.pools(windows) - 1
        epochs, places = samples // windows, samples % windows
        pools = np.minimum(places // span, last)
        for epoch, pool in {(int(e), int(p)) for e, p in zip(epochs, pools, strict=True)}:
            here = (epochs == epoch) & (pools == pool)
            first = pool * span
            size = windows - first if pool == last else span
            keys = epoch_keys(dataset_id, seed, f"{configuration},pool={pool}", epoch)
            places_in_pool = permute(places[here] - first, size, keys)
            blocks = self.blocks_of(epoch, pool, windows, dataset_id, seed, configuration)
            inside = places_in_pool < len(blocks) * self.block
            tail = windows // self.block * self.block + places_in_pool - len(blocks) * self.block
            number = np.minimum(places_in_pool // self.block, max(0, len(blocks) - 1))
            begin = blocks[number] * self.block if len(blocks) else np.zeros_like(tail)
            order[here] = np.where(inside, begin + places_in_pool % self.block, tail)
        return order

    def blocks_of(
        self, epoch: int, pool: int, windows: int, dataset_id: str, seed: int, configuration: str
    ) -> np.ndarray:
        """The blocks of a pool, shape (n,), int64, n being `self.pool` or less."""
        blocks = windows // self.block
        places = np.arange(pool * self.pool, min(blocks, (pool + 1) * self.pool), dtype=np.int64)
        if not len(places):
            return places
        return permute(places, blocks, epoch_keys(dataset_id, seed, f"{configuration},blocks", epoch))


class Mixture:
    """Which corpus a sample comes from, and which one of that corpus it is: shares by weight, exact in every cycle.

    A cycle of `CYCLE` samples holds as many of each corpus as its weight asks for, in an order of its
    own. What came before a cycle is known by multiplication, what came before in a cycle is counted.
    """

    CYCLE = 8192

    def __init__(self, weights: list[float]) -> None:
        total = sum(weights)
        exact = [weight / total * self.CYCLE for weight in weights]
        counts = [max(int(share), 1 if share else 0) for share in exact]
        by_rest = sorted(range(len(weights)), key=lambda c: (int(exact[c]) - exact[c], c))
        while (missing := self.CYCLE - sum(counts)) > 0:
            for c in by_rest[:missing]:
                counts[c] += 1 if weights[c] else 0
        while sum(counts) > self.CYCLE:
            counts[int(np.argmax(counts))] -= 1
        self.counts = np.array(counts, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._last: tuple[tuple[int, str, int, str], np.ndarray, np.ndarray] | None = None

    def split(
        self, samples: np.ndarray, dataset_id: str, seed: int, configuration: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """The corpus of every sample and its number among that corpus's samples, each shape (k,), int64."""
        samples = np.asarray(samples, dtype=np.int64)
        corpora, numbers = np.empty_like(samples), np.empty_like(samples)
        cycles, places = samples // self.CYCLE, samples % self.CYCLE
        for cycle in np.unique(cycles).tolist():
            here = cycles == cycle
            of_cycle, rank = self._cycle(cycle, dataset_id, seed, configuration)
            corpora[here] = of_cycle[places[here]]
            numbers[here] = cycle * self.counts[corpora[here]] + rank[places[here]]
        return corpora, numbers

    def _cycle(self, cycle: int, dataset_id: str, seed: int, configuration: str) -> tuple[np.ndarray, np.ndarray]:
        """The corpus at every place of a cycle, and how many of that corpus came before it there."""
        key = (cycle, dataset_id, seed, configuration)
        last = self._last  # threads ask at the same time
        if last is None or last[0] != key:
            everything = np.arange(cycle * self.CYCLE, (cycle + 1) * self.CYCLE, dtype=np.int64)
            drawn = windows_of(everything, self.CYCLE, dataset_id, seed, f"{configuration},mixture")
            corpora = np.searchsorted(self._starts, drawn, side="right") - 1
            in_order = np.argsort(corpora, kind="stable")
            rank = np.empty_like(corpora)
            rank[in_order] = np.arange(self.CYCLE) - self._starts[corpora[in_order]]
            self._last = last = key, corpora, rank
        return last[1], last[2]
