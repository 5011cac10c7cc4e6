"""Proves that the two-level shuffle is a pinned permutation that touches few blocks at a time, in order and loader."""

from __future__ import annotations

import itertools
import os
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.config import TrainConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.loader import TrainLoader
from gptpipe.dataset.order import TwoLevels, epoch_keys, permute
from gptpipe.dataset.stream import TokenStream
from tests.fixtures.datasets import GROUP_TOKENS, Sample, in_threads, read_anywhere

GOLDEN = [
    18,
    0,
    19,
    3,
    1,
    2,
    17,
    16,
    14,
    15,
    12,
    9,
    10,
    13,
    11,
    8,
    7,
    4,
    6,
    5,
    21,
    20,
    3,
    16,
    19,
    1,
    17,
    18,
    2,
    0,
    6,
    12,
    13,
    5,
    14,
    4,
    15,
    7,
    9,
    10,
    21,
    11,
    8,
    20,
]
KEY = ("dataset", 1, "context=8")
CONTEXT = 32
BLOCK = GROUP_TOKENS // CONTEXT
POOL = 3
PAGE = 4096
LIMIT = 160_000


def epochs_of(levels: TwoLevels, windows: int, epochs: int = 1, seed: int = 1) -> np.ndarray:
    found = levels.windows_of(np.arange(epochs * windows), windows, "dataset", seed, "context=8")
    return found.reshape(epochs, windows)


def reference(levels: TwoLevels, windows: int, epoch: int) -> list[int]:
    """One epoch again, with lists: permute the blocks, cut them into pools, permute each pool's windows."""
    count = windows // levels.block
    blocks = permute(np.arange(count), count, epoch_keys("dataset", 1, "context=8,blocks", epoch)) if count else []
    pools = [
        [int(b) * levels.block + i for b in blocks[first : first + levels.pool] for i in range(levels.block)]
        for first in range(0, max(count, 1), levels.pool)
    ]
    pools[-1] += range(count * levels.block, windows)
    order: list[int] = []
    for number, pool in enumerate(pools):
        keys = epoch_keys("dataset", 1, f"context=8,pool={number}", epoch)
        order += [pool[place] for place in permute(np.arange(len(pool)), len(pool), keys)]
    return order


# --- the order -----------------------------------------------------------------------------------------------


@given(windows=st.integers(1, 300), block=st.integers(1, 70), pool=st.integers(1, 20), seed=st.integers(0, 2**62))
@settings(max_examples=80, deadline=None)
def test_every_epoch_holds_every_window_once(windows: int, block: int, pool: int, seed: int) -> None:
    found = epochs_of(TwoLevels(block, pool), windows, 3, seed)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(windows), (3, 1)))


@pytest.mark.parametrize(
    ("windows", "block", "pool"),
    [
        (1, 1, 1),
        (1, 100, 5),
        (99, 100, 5),
        (100, 100, 1),
        (101, 100, 1),
        (64, 8, 1),
        (64, 8, 8),
        (64, 8, 99),
        (71, 8, 3),
        (72, 8, 3),
        (73, 8, 3),
        (79, 8, 3),
        (6, 1, 2),
        (7, 1, 2),
    ],
)
def test_edges_are_permutations_as_described(windows: int, block: int, pool: int) -> None:
    levels = TwoLevels(block, pool)
    for epoch, found in enumerate(epochs_of(levels, windows, 3)):
        assert sorted(found.tolist()) == list(range(windows))
        assert found.tolist() == reference(levels, windows, epoch)


@given(windows=st.integers(1, 500), block=st.integers(1, 40), pool=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_order_is_the_description_s(windows: int, block: int, pool: int) -> None:
    levels = TwoLevels(block, pool)
    assert [row.tolist() for row in epochs_of(levels, windows, 2)] == [reference(levels, windows, e) for e in (0, 1)]


@given(windows=st.integers(1, 600), block=st.integers(1, 50), pool=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_the_windows_of_a_pool_lie_in_its_blocks(windows: int, block: int, pool: int) -> None:
    levels = TwoLevels(block, pool)
    seen: list[int] = []
    pools = levels.pools(windows)
    for epoch, number in itertools.product(range(2), range(pools)):
        blocks = levels.blocks_of(epoch, number, windows, *KEY)
        assert len(blocks) <= pool
        first = number * block * pool
        last = windows if number == pools - 1 else first + block * pool
        found = levels.windows_of(np.arange(first, last) + epoch * windows, windows, *KEY)
        whole = [b * block + i for b in blocks.tolist() for i in range(block)]
        tail = list(range(windows // block * block, windows)) if number == pools - 1 else []
        assert sorted(found.tolist()) == sorted(whole + tail)
        assert len(found) <= block * pool + (block - 1 if number == pools - 1 else 0)
        seen += blocks.tolist()
    assert sorted(seen) == sorted(2 * list(range(windows // block)))


@given(
    windows=st.integers(1, 200),
    block=st.integers(1, 40),
    pool=st.integers(1, 12),
    samples=st.lists(st.integers(0, 10**13), max_size=20),
)
@settings(max_examples=30, deadline=None)
def test_a_place_does_not_depend_on_what_it_is_asked_with(
    windows: int, block: int, pool: int, samples: list[int]
) -> None:
    levels = TwoLevels(block, pool)
    together = levels.windows_of(np.array(samples, dtype=np.int64), windows, *KEY).tolist()
    assert together == [int(levels.windows_of(np.array([i]), windows, *KEY)[0]) for i in samples]
    whole = epochs_of(levels, windows, 2).reshape(-1)
    alone = [int(levels.windows_of(np.array([i]), windows, *KEY)[0]) for i in range(2 * windows)]
    assert whole.tolist() == alone


def test_the_sequence_is_pinned() -> None:
    found = TwoLevels(4, 2).windows_of(np.arange(44), 22, "0123456789abcdef0123456789abcdef", 1337, "context=4")
    assert found.tolist() == GOLDEN


def test_epochs_seeds_and_configurations_differ() -> None:
    levels = TwoLevels(16, 8)
    rows = [*epochs_of(levels, 4096, 4), *epochs_of(levels, 4096, 1, seed=2)]
    rows.append(levels.windows_of(np.arange(4096), 4096, "dataset", 1, "context=16"))
    rows.append(levels.windows_of(np.arange(4096), 4096, "another", 1, "context=8"))
    for one, other in itertools.combinations(rows, 2):
        assert (one == other).mean() < 0.01
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.35  # 32 pools of 8 blocks: few independent numbers
    blocks = [levels.blocks_of(epoch, 0, 4096, *KEY).tolist() for epoch in range(6)]
    assert len({tuple(sorted(each)) for each in blocks}) == 6  # other blocks share a pool in every epoch


def test_a_huge_dataset_needs_no_array() -> None:
    windows = 15 * 10**9
    levels = TwoLevels(1000, 256)
    samples = np.array([0, 1, windows - 1, windows, 7 * windows + 12_345_678])
    found = levels.windows_of(samples, windows, *KEY)
    assert ((found >= 0) & (found < windows)).all()


def test_windows_of_a_pool_are_as_mixed_as_a_random_permutation() -> None:
    """Bounds are 4.5 standard deviations of a random permutation of n."""
    levels, windows, pools = TwoLevels(64, 16), 64 * 16 * 12, 12
    n = 64 * 16
    displaced, adjacent, stays = [], 0, 0
    for row in epochs_of(levels, windows, 5).reshape(-1, n):
        ranks = np.argsort(np.argsort(row))
        displaced.append(np.abs(ranks - np.arange(n)).mean())
        adjacent += int((np.abs(np.diff(ranks)) == 1).sum())
        stays += int((np.diff(row // 64) == 0).sum())
    trials = 5 * pools
    assert abs(np.mean(displaced) - (n * n - 1) / (3 * n)) < 4.5 * n * (2 / 45) ** 0.5 / (n * trials) ** 0.5
    expected = trials * 2 * (n - 1) / n
    assert abs(adjacent - expected) < 4.5 * expected**0.5
    same_block = trials * (n - 1) * 63 / (n - 1)  # the next window lies in the same block
    assert abs(stays - same_block) < 4.5 * same_block**0.5


# --- the loader ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptpipe.dataset.sample_order.ROW_GROUP_TOKENS", GROUP_TOKENS)


def loader(sample: Sample, cache: Path, closing: list[TrainLoader], limit: int = 10**12, **options: int) -> TrainLoader:
    ranks = {
        name: options.pop(name) for name in ("rank", "world_size", "local_rank", "local_world_size") if name in options
    }
    config = TrainConfig(**{"batch_size": 50, "seed": 1, "shuffle": "two-level", "shuffle_blocks": POOL, **options})
    stream = TokenStream(sample.dataset, "train", TokenCache(cache, limit))
    closing.append(TrainLoader(stream, context_length=CONTEXT, config=config, **ranks))
    return closing[-1]


def numbers_of(loading: TrainLoader, start: int, stop: int) -> np.ndarray:
    places, lengths = loading.order.places(np.arange(start, stop))
    assert (lengths == CONTEXT).all()
    assert (places % CONTEXT == 0).all()
    return places // CONTEXT


def rows_at(sample: Sample, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(
        np.stack([sample.tokens[n * CONTEXT : n * CONTEXT + CONTEXT + 1] for n in numbers.tolist()])
    )
    return rows[:, :-1], rows[:, 1:]


def check_batches(sample: Sample, loading: TrainLoader, steps: int) -> None:
    """The next batches are the windows that the order promises."""
    for _ in range(steps):
        wanted = rows_at(sample, numbers_of(loading, loading.samples_seen, loading.samples_seen + 50))
        inputs, targets, tokens, drawn = loading.next_batch()
        assert torch.equal(inputs, wanted[0])
        assert torch.equal(targets, wanted[1])
        assert tokens == drawn.sum() == 50 * CONTEXT


def test_the_loader_reads_every_window_once_an_epoch_few_blocks_at_a_time(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    loading = loader(sample, tmp_path, closing)
    count = (len(sample.tokens) - 1) // CONTEXT
    assert loading.order.count == count > 15 * BLOCK * POOL
    for epoch in range(2):
        numbers = numbers_of(loading, epoch * count, (epoch + 1) * count)
        assert sorted(numbers.tolist()) == list(range(count))
        for first in range(0, count - BLOCK * POOL, BLOCK * POOL):
            assert len(set((numbers[first : first + BLOCK * POOL] // BLOCK).tolist())) <= POOL + 1  # 1: the tail
    check_batches(sample, loading, 2 * count // 50)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_world_size_reads_the_same_sequence(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader], world_size: int
) -> None:
    alone = loader(sample, tmp_path / "a", closing)
    ranks = [
        loader(
            sample, tmp_path / "b", closing, rank=r, world_size=world_size, local_rank=r, local_world_size=world_size
        )
        for r in range(world_size)
    ]
    for _ in range(alone.order.count // 50 + 5):
        parts = [rank.next_batch() for rank in ranks]
        inputs, targets, tokens, _ = alone.next_batch()
        assert torch.equal(torch.cat([part.inputs for part in parts]), inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), targets)
        assert {part.tokens for part in parts} == {tokens}


@pytest.mark.parametrize("seen", [0, 50, 380, 385, 7777, 10**9])
def test_it_goes_on_from_any_sample(sample: Sample, tmp_path: Path, closing: list[TrainLoader], seen: int) -> None:
    loading = loader(sample, tmp_path, closing)
    check_batches(sample, loading, 3)
    loading.seek(seen)
    check_batches(sample, loading, 20)
    assert loading.samples_seen == seen + 1000


def test_the_pool_size_is_part_of_the_order(sample: Sample, tmp_path: Path, closing: list[TrainLoader]) -> None:
    one, other = (loader(sample, tmp_path, closing, shuffle_blocks=pool) for pool in (3, 4))
    assert numbers_of(one, 0, 200).tolist() != numbers_of(other, 0, 200).tolist()


def used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def test_an_almost_full_cache_is_still_right_and_stays_within_its_limit(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    assert sample.tokens.nbytes // 4 > 2 * LIMIT  # int64 here, uint16 there
    loading = loader(sample, tmp_path, closing, LIMIT)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], used(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        check_batches(sample, loading, 2 * loading.order.count // 50)
    finally:
        done.set()
        watcher.join()
    decoding = 2 * (2 * GROUP_TOKENS + 3 * PAGE)  # two threads, a row group each
    marks = PAGE * (len(loading._stream.index) + 1) + 3 * PAGE  # which groups are there, the lock, the folders
    assert most[0] <= LIMIT + decoding + marks


def mapped_but_removed(folder: Path) -> int:
    """Bytes of disk that removed files below a folder still take because this process maps them."""
    found: dict[tuple[int, int], int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line and line.endswith("(deleted)"):
            try:
                state = os.stat(f"/proc/self/map_files/{line.split()[0]}")  # noqa: PTH116
            except PermissionError:
                pytest.skip("may not look at /proc/self/map_files")
            except FileNotFoundError:
                continue
            found[state.st_dev, state.st_ino] = state.st_blocks * 512
    return sum(found.values())


def test_removed_files_that_are_still_mapped_do_not_take_the_disk_beyond_the_limit(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    """What the cache removed takes disk until it is let go: all together it must stay near the limit."""
    loading = loader(sample, tmp_path, closing, LIMIT)
    most = 0
    for _ in range(2 * loading.order.count // 50):
        loading.next_batch()
        most = max(most, used(tmp_path) + mapped_but_removed(tmp_path))
    whole_shard = int(loading._stream.index.stream_lengths.max()) * 2
    assert most <= LIMIT + 3 * whole_shard


@pytest.mark.slow
def test_two_threads_that_let_go_of_removed_shards_do_not_meet(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's two threads read one stream; with a small cache both find the same shard gone."""
    monkeypatch.setattr("gptpipe.dataset.stream.OPEN", 3)  # as if there were more shards than may be mapped
    stream = TokenStream(sample.dataset, "train", TokenCache(tmp_path, 20_000))
    until = time.monotonic() + 4
    assert in_threads(*(partial(read_anywhere, stream, sample.tokens, 40, until, seed) for seed in (0, 1))) == []
