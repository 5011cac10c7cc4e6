"""Proves that the order of samples is a pinned pure function, a permutation of every epoch, and a good shuffle."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.dataset.order import ROUNDS, epoch_keys, permute, windows_of

SIZES = sorted({*range(1, 70), *(2**k + d for k in range(7, 16) for d in (-1, 0, 1)), 1000, 99_991})
U64 = (1 << 64) - 1


def keys_of(seed: int) -> np.ndarray:
    return epoch_keys("dataset", seed, "context=8", 0)


def permutation(n: int, seed: int = 0) -> np.ndarray:
    return permute(np.arange(n), n, keys_of(seed))


def reference_keys(dataset_id: str, seed: int, configuration: str, epoch: int) -> list[int]:
    """The keys again, from the description: SHA-512 of the arguments, eight little-endian words."""
    data = hashlib.sha512(f"gptpipe order 1|{dataset_id}|{seed}|{configuration}|{epoch}".encode()).digest()
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, 64, 8)]


def reference_permute(index: int, n: int, keys: list[int]) -> int:
    """The permutation again, with plain integers: a balanced Feistel network of splitmix64, and cycle walking."""
    half = 1
    while 4**half < n:
        half += 1
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            x = ((right ^ key) + 0x9E3779B97F4A7C15) & U64
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
            left, right = right, left ^ ((x ^ (x >> 31)) & mask)
        index = left << half | right
        if index < n:
            return index


def chi_square(counts: list[int], cells: int) -> float:
    expected = sum(counts) / cells
    return sum((count - expected) ** 2 for count in [*counts, *[0] * (cells - len(counts))]) / expected


# --- pinned --------------------------------------------------------------------------------------------------


def test_the_keys_are_pinned() -> None:
    keys = epoch_keys("0123456789abcdef0123456789abcdef", 1337, "context=256,join=documents,shuffle=global", 3)
    assert keys.dtype == np.uint64
    assert keys.shape == (ROUNDS,) == (8,)
    assert keys.tolist() == [
        9748294774709032391,
        12397752605226087808,
        7970123254491348351,
        2105327367283761517,
        17643425148638985078,
        3145972987607305712,
        1257164540753809299,
        3950340235139728777,
    ]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [0]),
        (2, [1, 0]),
        (3, [2, 0, 1]),
        (4, [3, 0, 1, 2]),
        (16, [11, 2, 13, 3, 12, 1, 10, 5]),
        (17, [12, 7, 14, 1, 5, 10, 0, 13]),
        (255, [123, 237, 215, 143, 22, 254, 115, 105]),
        (256, [123, 237, 215, 143, 22, 254, 210, 192]),
        (257, [102, 48, 26, 129, 205, 86, 57, 10]),
        (1000000, [273582, 704796, 495765, 216384, 924030, 565512, 651015, 996339]),
        (
            1099511627779,
            [
                1072625146291,
                847423073736,
                448317393066,
                642992763811,
                1054329479333,
                976596667760,
                852586194614,
                921613287330,
            ],
        ),
    ],
)
def test_the_permutation_is_pinned(n: int, expected: list[int]) -> None:
    places = sorted({*range(min(n, 5)), n // 3, n // 2, n - 1})
    assert permute(np.array(places), n, keys_of(7)).tolist() == expected


def test_the_sequence_is_pinned_across_epochs() -> None:
    found = windows_of(np.arange(30), 10, "0123456789abcdef0123456789abcdef", 1337, "context=4")
    assert found.tolist() == [9, 3, 8, 1, 6, 5, 2, 0, 4, 7, 8, 4, 3, 6, 1, 9, 7, 2, 0, 5, 8, 0, 4, 5, 1, 6, 9, 2, 7, 3]


def test_the_keys_and_the_permutation_are_the_published_construction() -> None:
    for arguments in (("a", 0, "c", 0), ("a", 2**62, "c", 10**9), ("", 1, "context=1024", 5)):
        keys = reference_keys(*arguments)
        assert epoch_keys(*arguments).tolist() == keys
        for n in (1, 2, 3, 4, 5, 15, 16, 17, 1000, 65_537, 2**31, 2**40 + 3, 10**15, 2**62):
            places = sorted({0, n // 7, n // 2, n - 1})
            found = permute(np.array(places), n, np.array(keys, dtype=np.uint64)).tolist()
            assert found == [reference_permute(place, n, keys) for place in places]


# --- a permutation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_every_place_gets_one_window_and_every_window_one_place(n: int) -> None:
    found = permutation(n)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(n))


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_place_s_window_does_not_depend_on_what_it_is_asked_with(n: int, seed: int, data: st.DataObject) -> None:
    whole = permutation(n, seed)
    assert np.array_equal(np.sort(whole), np.arange(n))
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    assert permute(np.array(places, dtype=np.int64), n, keys_of(seed)).tolist() == whole[places].tolist()


def test_asking_changes_neither_the_places_nor_the_keys() -> None:
    places, keys = np.arange(100, dtype=np.uint64), keys_of(1)
    before = keys.copy()
    permute(places, 100, keys)
    assert np.array_equal(places, np.arange(100))
    assert np.array_equal(keys, before)


@pytest.mark.parametrize("n", [2**31 + 11, 2**40 + 3, 15 * 10**12, 2**62])
def test_huge_domains_need_no_array_and_stay_one_to_one(n: int) -> None:
    places = np.unique(np.concatenate([np.arange(1000), n - 1 - np.arange(1000), np.linspace(0, n - 1, 1000)]))
    places = places.astype(np.int64).clip(0, n - 1)
    found = permute(places, n, keys_of(3))
    assert len(np.unique(found)) == len(np.unique(places))
    assert found.min() >= 0
    assert found.max() < n
    assert abs(found.mean() / n - 0.5) < 0.03


@pytest.mark.parametrize("windows", [1, 2, 3, 7, 64, 65])
def test_every_epoch_holds_every_window_once(windows: int) -> None:
    found = windows_of(np.arange(5 * windows), windows, "dataset", 1, "context=8").reshape(5, windows)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(windows), (5, 1)))


@given(st.lists(st.integers(0, 10**15), max_size=30), st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_a_sample_does_not_depend_on_what_it_is_asked_with(samples: list[int], windows: int) -> None:
    together = windows_of(np.array(samples, dtype=np.int64), windows, "dataset", 1, "context=8").tolist()
    alone = [int(windows_of(np.array([i]), windows, "dataset", 1, "context=8")[0]) for i in samples]
    assert together == alone
    assert all(0 <= window < windows for window in together)


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset_id": "another"},
        {"seed": 1},
        {"seed": 2**32},
        {"configuration": "context=16"},
    ],
    ids=str,
)
def test_each_argument_gives_another_order(changed: dict[str, object]) -> None:
    arguments: dict[str, object] = {"dataset_id": "dataset", "seed": 0, "configuration": "context=8"}
    one = windows_of(np.arange(1000), 1000, **arguments)  # type: ignore[arg-type]
    other = windows_of(np.arange(1000), 1000, **{**arguments, **changed})  # type: ignore[arg-type]
    assert (one == other).mean() < 0.01
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.13


def test_epochs_differ_from_each_other() -> None:
    epochs = windows_of(np.arange(20_000), 1000, "dataset", 0, "context=8").reshape(20, 1000)
    for one, other in itertools.combinations(epochs, 2):
        assert (one == other).mean() < 0.01
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


# --- a good shuffle: all bounds are more than four standard deviations of a random permutation ---------------


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_over_seeds_every_small_permutation_comes_equally_often(n: int) -> None:
    possible = len(list(itertools.permutations(range(n))))
    counts = Counter(tuple(permutation(n, seed).tolist()) for seed in range(20 * possible))
    degrees = possible - 1
    assert chi_square(list(counts.values()), possible) < degrees + 4.5 * (2 * degrees) ** 0.5 + 10


@pytest.mark.parametrize("n", [13, 16, 17, 64])
def test_over_seeds_every_window_comes_to_every_place_equally_often(n: int) -> None:
    trials = 25 * n
    counts = np.zeros((n, n), dtype=np.int64)
    for seed in range(trials):
        counts[np.arange(n), permutation(n, seed)] += 1
    degrees = (n - 1) ** 2
    assert chi_square(counts.ravel().tolist(), n * n) < degrees + 4.5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(("n", "seeds"), [(10, 400), (100, 200), (1000, 60), (4096, 20), (4097, 20), (100_003, 3)])
def test_windows_land_as_far_away_as_in_a_random_permutation(n: int, seeds: int) -> None:
    displaced, steps, adjacent, correlations = [], [], 0, []
    for seed in range(seeds):
        found = permutation(n, seed)
        displaced.append(np.abs(found - np.arange(n)).mean())
        steps.append(np.abs(np.diff(found)).mean())
        adjacent += int((np.abs(np.diff(found)) == 1).sum())
        correlations.append(np.corrcoef(found, np.arange(n))[0, 1])
    mean = (n * n - 1) / (3 * n)
    spread = n * (2 / 45) ** 0.5 / (n * seeds) ** 0.5
    assert abs(np.mean(displaced) - mean) < 4.5 * spread
    assert abs(np.mean(steps) - (n + 1) / 3) < 4.5 * 1.2 * spread
    expected = seeds * 2 * (n - 1) / n
    assert abs(adjacent - expected) < 4.5 * expected**0.5
    assert abs(np.mean(correlations)) < 4.5 / ((n - 1) * seeds) ** 0.5
    assert np.abs(correlations).max() < 5.5 / (n - 1) ** 0.5


def test_the_first_windows_of_an_epoch_come_from_all_over_it() -> None:
    n = 2**20 + 7
    for seed in range(5):
        found = permute(np.arange(2000), n, keys_of(seed))
        counts = np.bincount(found * 20 // n, minlength=20)
        assert chi_square(counts.tolist(), 20) < 19 + 4.5 * 38**0.5


@pytest.mark.parametrize("n", [1000, 4096, 65_537])
def test_neighbouring_seeds_and_low_bits_are_not_related(n: int) -> None:
    one, other = permutation(n, 1337), permutation(n, 1338)
    bound = 4.5 / n**0.5
    assert abs(np.corrcoef(one, other)[0, 1]) < bound
    assert (one == other).sum() <= 9
    for bit in range(4):
        assert abs(np.corrcoef(one >> bit & 1, np.arange(n) >> bit & 1)[0, 1]) < bound
        assert abs(np.corrcoef(one[:-1] >> bit & 1, one[1:] >> bit & 1)[0, 1]) < bound
