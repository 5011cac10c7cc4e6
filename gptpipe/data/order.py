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
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
        return mixed


def windows_of(samples: np.ndarray, windows: int, dataset_id: str, seed: int, configuration: str) -> np.ndarray:
    """s(i) for every i in `samples` (shape (k,), any order): the number of the window, shape (k,), int64."""
    samples = np.asarray(samples, dtype=np.int64)
    epochs, places = samples // windows, samples % windows
    found = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = permute(places[here], windows, epoch_keys(dataset_id, seed, configuration, int(epoch)))
    return found
