"""Proves that batches tile the stream, each window once an epoch, whatever the ranks, and resume from one number."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.config import DataConfig, TrainConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.loader import Batch, TrainLoader, evaluation_batches
from gptpipe.dataset.order import windows_of
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import evaluation_windows
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer

CONTEXT = 8
END = 50_256


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four corpora, so at least four shards, of short documents."""
    root = tmp_path_factory.mktemp("dataset")
    draw = random.Random(1)
    for corpus, document in itertools.product(range(4), range(12)):
        file = root / f"corpus-{corpus}" / f"{document}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(" ".join(draw.choices(["red", "green", "blue", "\n", "yellow", "1"], k=draw.randint(1, 40))))
    corpora: Any = [str(root / f"corpus-{corpus}") for corpus in range(4)]
    made = tokenize(DataConfig(corpus=corpora, validation=0.3, workers=1), str(root / "out"))
    return open_dataset(made.dataset)


@pytest.fixture
def stream(dataset: Dataset, tmp_path: Path) -> TokenStream:
    return TokenStream(dataset, "train", TokenCache(tmp_path, 10**12))


@pytest.fixture(scope="module")
def expected(dataset: Dataset) -> np.ndarray:
    """The training stream as any Parquet reader finds it: files in the order of the index, documents in theirs."""
    return stream_of(dataset, "train")


def stream_of(dataset: Dataset, split: str) -> np.ndarray:
    tokens: list[int] = []
    for entry in pq.read_table(f"{dataset.url}/shards.parquet").to_pylist():
        if entry["split"] == split:
            for row in pq.read_table(f"{dataset.url}/{entry['path']}").to_pylist():
                tokens += row["tokens"] + ([END] if row["last"] else [])
    return np.array(tokens)


def loader(stream: TokenStream, batch_size: int = 6, **options: Any) -> TrainLoader:
    ranks = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    context = options.pop("context_length", CONTEXT)
    config = TrainConfig(**{"batch_size": batch_size, "seed": 1, **options})
    return TrainLoader(stream, context_length=context, config=config, **ranks)


def sample_windows(loading: TrainLoader, start: int, stop: int) -> np.ndarray:
    """The windows of samples `start` to `stop`, by number."""
    places, lengths = loading.order.places(np.arange(start, stop))
    assert (lengths == CONTEXT).all()
    return places // CONTEXT


def window_numbers(batch: Batch, expected: np.ndarray) -> list[list[int]]:
    """Every window of the stream that a row of the batch is; a list, as short windows can repeat."""
    count = (len(expected) - 1) // CONTEXT
    rows = {}
    for number in range(count):
        piece = tuple(expected[number * CONTEXT : number * CONTEXT + CONTEXT + 1].tolist())
        rows.setdefault(piece, []).append(number)
    return [rows[(*x.tolist(), int(y[-1]))] for x, y in zip(*batch, strict=True)]


# --- the stream ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_stream_is_every_document_in_the_index_s_order_each_with_its_separator(
    dataset: Dataset, split: str, tmp_path: Path
) -> None:
    stream = TokenStream(dataset, split, TokenCache(tmp_path, 10**12))
    assert len(stream.index) >= 4
    assert stream.read(0, stream.length).tolist() == stream_of(dataset, split).tolist()
    assert stream.length == dataset.total("tokens", split) + dataset.total("documents", split)
    assert stream.bytes == dataset.total("bytes", split)
    assert stream.end_of_text == END


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_of_the_stream_can_be_read(
    dataset: Dataset, expected: np.ndarray, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stream = TokenStream(dataset, "train", TokenCache(tmp_path_factory.getbasetemp() / "cache-of-parts", 10**12))
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    assert stream.read(start, stop).tolist() == expected[start:stop].tolist()


def test_a_split_that_is_not_there_is_refused_by_name(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test split") as caught:
        TokenStream(dataset, "test", TokenCache(tmp_path, 10**12))
    assert "train" in caught.value.hint


def test_prepared_shards_need_the_dataset_no_more(dataset: Dataset, expected: np.ndarray, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(dataset.url, moved)
    stream = TokenStream(open_dataset(str(moved)), "train", TokenCache(tmp_path / "cache", 10**12))
    stream.prepare()
    shutil.rmtree(moved)
    assert stream.read(0, stream.length).tolist() == expected.tolist()


def test_a_cached_shard_of_the_wrong_size_is_decoded_again(
    dataset: Dataset, expected: np.ndarray, tmp_path: Path
) -> None:
    TokenStream(dataset, "train", TokenCache(tmp_path, 10**12)).prepare()
    cached = sorted(tmp_path.rglob("*.bin"))
    assert len(cached) >= 4
    for file in cached:
        file.write_bytes(file.read_bytes()[:-2])
    stream = TokenStream(dataset, "train", TokenCache(tmp_path, 10**12))
    assert stream.read(0, stream.length).tolist() == expected.tolist()


# --- training batches ----------------------------------------------------------------------------------------


def test_a_batch_has_its_shape_and_targets_one_to_the_right(stream: TokenStream, expected: np.ndarray) -> None:
    inputs, targets, *_ = loader(stream).next_batch()
    for tensor in (inputs, targets):
        assert tensor.shape == (6, CONTEXT)
        assert tensor.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert all(window_numbers((inputs, targets), expected))


def test_an_epoch_reads_every_window_once_in_the_promised_order(stream: TokenStream, expected: np.ndarray) -> None:
    loading = loader(stream, batch_size=7)
    count = (len(expected) - 1) // CONTEXT
    assert loading.order.count == count
    steps = -(-3 * count // 7)
    numbers = np.concatenate([sample_windows(loading, 7 * k, 7 * k + 7) for k in range(steps)])
    for epoch in range(3):
        assert sorted(numbers[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))
    rows = [row for _ in range(steps) for row in window_numbers(loading.next_batch()[:2], expected)]
    assert loading.samples_seen == 7 * steps
    assert all(number in row for number, row in zip(numbers.tolist(), rows, strict=True))


def test_the_order_is_the_pure_function_of_the_dataset_s_id_and_the_seed(stream: TokenStream) -> None:
    configuration = f"context={CONTEXT},join=documents,shuffle=global"
    for seed in (1, 2):
        promised = windows_of(np.arange(50), loader(stream).order.count, stream.dataset.id, seed, configuration)
        assert sample_windows(loader(stream, seed=seed), 0, 50).tolist() == promised.tolist()


@pytest.mark.parametrize("seen", [0, 1, 6, 100, 1234, 10**9, 10**12 + 1])
def test_reading_goes_on_from_any_number_of_samples(stream: TokenStream, seen: int) -> None:
    resumed = loader(stream)
    resumed.seek(seen)
    numbers = sample_windows(loader(stream), seen, seen + 12)
    inputs = torch.cat([resumed.next_batch()[0] for _ in range(2)])
    direct = [stream.read(n * CONTEXT, n * CONTEXT + CONTEXT).tolist() for n in numbers.tolist()]
    assert inputs.tolist() == direct
    assert resumed.samples_seen == seen + 12


def test_a_run_that_was_stopped_reads_what_it_would_have_read(stream: TokenStream) -> None:
    whole = loader(stream)
    batches = [whole.next_batch() for _ in range(20)]
    for stop in (0, 1, 13, 19):
        again = loader(stream)
        again.seek(6 * stop)
        for inputs, targets, *_ in batches[stop:]:
            found = again.next_batch()
            assert torch.equal(found[0], inputs)
            assert torch.equal(found[1], targets)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 6, 7, 12])
def test_the_ranks_batches_put_together_are_the_global_batch(
    stream: TokenStream, world_size: int, batch_size: int
) -> None:
    alone = loader(stream, batch_size)
    ranks = [loader(stream, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2 * alone.order.count // batch_size):  # across an epoch's end
        parts = [rank.next_batch() for rank in ranks]
        inputs, targets, *_ = alone.next_batch()
        assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)
        assert {rank.samples_seen for rank in ranks} == {alone.samples_seen}
    sizes = [len(part[0]) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_another_batch_size_reads_the_same_sequence(stream: TokenStream) -> None:
    small, large = loader(stream, 3), loader(stream, 15)
    assert torch.equal(
        torch.cat([small.next_batch()[0] for _ in range(10)]), torch.cat([large.next_batch()[0] for _ in range(2)])
    )


def test_a_batch_can_be_larger_than_the_data(stream: TokenStream) -> None:
    count = loader(stream).order.count
    numbers = sample_windows(loader(stream), 0, 2 * count + 5)
    inputs, _, *_ = loader(stream, 2 * count + 5).next_batch()
    assert inputs.tolist() == [stream.read(n * CONTEXT, (n + 1) * CONTEXT).tolist() for n in numbers.tolist()]


def test_the_longest_possible_context_gives_one_window_and_a_longer_one_is_refused(
    stream: TokenStream, expected: np.ndarray
) -> None:
    longest = len(expected) - 1
    inputs, targets, *_ = loader(stream, 2, context_length=longest).next_batch()
    assert inputs.tolist() == [expected[:-1].tolist()] * 2
    assert targets.tolist() == [expected[1:].tolist()] * 2
    with pytest.raises(UserError, match=f"{longest + 1} tokens") as caught:
        loader(stream, context_length=longest + 1)
    assert "context" in caught.value.hint


def test_a_batch_smaller_than_the_number_of_ranks_is_refused(stream: TokenStream) -> None:
    with pytest.raises(UserError) as caught:
        loader(stream, 3, world_size=4)
    assert caught.value.where == "train.batch_size"


# --- evaluation ----------------------------------------------------------------------------------------------


def plain(length: int, context: int, max_tokens: int = 0) -> list[tuple[int, int]]:
    """Windows that do not overlap: where they begin, and how many targets they have."""
    found = evaluation_windows(length, context, max_tokens=max_tokens).tolist()
    assert all(size == scored for _, size, scored in found)
    return [(start, size) for start, size, _ in found]


@given(length=st.integers(0, 400), context=st.integers(1, 60), world_size=st.integers(1, 5))
def test_windows_score_every_token_but_the_first_once(length: int, context: int, world_size: int) -> None:
    windows = plain(length, context)
    scored = [start + 1 + i for start, size in windows for i in range(size)]
    assert scored == list(range(1, length))
    assert all(size == context for _, size in windows[:-1])
    ranks = [windows[rank::world_size] for rank in range(world_size)]
    assert sorted(itertools.chain(*ranks)) == windows


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_batches_score_every_token_but_the_first_once_whatever_the_ranks(
    stream: TokenStream, expected: np.ndarray, world_size: int, batch_size: int
) -> None:
    assert (len(expected) - 1) % CONTEXT, "the last window must be shorter for this to prove anything"
    found = []
    for rank in range(world_size):
        for inputs, targets in evaluation_batches(stream, CONTEXT, batch_size, rank=rank, world_size=world_size):
            assert inputs.shape == targets.shape
            assert inputs.shape[0] <= batch_size
            assert inputs.dtype == targets.dtype == torch.int64
            found += [(*x, y[-1]) for x, y in zip(inputs.tolist(), targets.tolist(), strict=True)]
    starts = range(0, len(expected) - 1, CONTEXT)
    assert sorted(found) == sorted(tuple(expected[start : start + CONTEXT + 1].tolist()) for start in starts)
    assert sum(len(window) - 1 for window in found) == len(expected) - 1


def test_one_rank_scores_the_windows_in_order(stream: TokenStream, expected: np.ndarray) -> None:
    targets = [y.flatten() for _, y in evaluation_batches(stream, CONTEXT, 4)]
    assert torch.cat(targets).tolist() == expected[1:].tolist()


@given(length=st.integers(2, 5000), context=st.integers(1, 60), limit=st.integers(1, 3000))
def test_a_limit_spreads_whole_windows_evenly(length: int, context: int, limit: int) -> None:
    everything = plain(length, context)
    windows = plain(length, context, limit)
    if limit // context >= len(everything):
        assert windows == everything
        return
    assert set(windows) <= set(everything)
    assert len(set(windows)) == len(windows)
    assert windows == sorted(windows)
    assert sum(size for _, size in windows) <= max(limit, context)  # one window is the least
    assert len(windows) == min(len(everything), max(1, limit // context))
    numbers = [start // context for start, _ in windows]
    gaps = np.diff([*numbers, len(everything)])  # the end counts as the next one's place
    assert gaps.max() - gaps.min() <= 1
    assert numbers[0] == 0


def test_a_limit_is_kept_over_all_ranks_together(stream: TokenStream) -> None:
    limit = 10 * CONTEXT + 3
    alone = list(evaluation_batches(stream, CONTEXT, 4, limit))
    assert sum(x.numel() for x, _ in alone) == 10 * CONTEXT
    for world_size in (2, 3):
        rows = [
            row
            for rank in range(world_size)
            for x, _ in evaluation_batches(stream, CONTEXT, 4, limit, rank=rank, world_size=world_size)
            for row in x.tolist()
        ]
        assert sorted(rows) == sorted(row for x, _ in alone for row in x.tolist())


# --- damage --------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset that a test may break."""
    import shutil

    shutil.copytree(dataset.url, tmp_path / "copy")
    return open_dataset(str(tmp_path / "copy"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "removed"])
def test_a_damaged_shard_is_named_when_it_is_read(damaged: Dataset, tmp_path: Path, damage: str) -> None:
    stream = TokenStream(damaged, "train", TokenCache(tmp_path / "cache", 10**12))
    shard = Path(damaged.url) / stream.index[1].path
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "removed":
        shard.unlink()
    else:
        shard.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "emptied": b""}[damage])
    first = stream.index[0].tokens + stream.index[0].documents
    stream.read(0, first)  # the others are still read
    with pytest.raises(UserError) as caught:
        stream.read(first, first + 1)
    assert caught.value.where == str(shard)
    assert "tokenize again" in caught.value.hint
    with pytest.raises(UserError, match=stream.index[1].hash):
        stream.prepare()


@pytest.mark.parametrize("name", ["shards.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "removed", "flipped"])
def test_a_damaged_index_or_manifest_is_named_when_it_is_opened(damaged: Dataset, name: str, damage: str) -> None:
    file = Path(damaged.url) / name
    content = bytearray(file.read_bytes())
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[0] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_dataset(damaged.url).index()
    assert str(Path(damaged.url)) in caught.value.where
    assert "manifest" in str(caught.value) or name in caught.value.where


def test_every_flipped_byte_of_the_index_is_noticed(damaged: Dataset) -> None:
    file = Path(damaged.url) / "shards.parquet"
    content = file.read_bytes()
    for position in range(0, len(content), 97):
        file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(UserError, match="damaged") as caught:
            open_dataset(damaged.url).index()
        assert caught.value.where == str(file)


def test_a_dataset_of_another_tokenizer_of_that_name_is_refused(damaged: Dataset, tmp_path: Path) -> None:
    assert damaged.load_tokenizer() is get_tokenizer("gpt2")
    other = {**damaged.tokenizer, "sha256": hashlib.sha256(b"other").hexdigest()}
    with pytest.raises(UserError, match="another tokenizer"):
        TokenStream(
            Dataset(damaged.url, {**damaged.manifest, "tokenizer": other}),
            "train",
            TokenCache(tmp_path / "cache", 10**12),
        )


def test_a_dataset_of_a_newer_format_is_refused(damaged: Dataset) -> None:
    import json

    file = Path(damaged.url) / "manifest.json"
    file.write_text(json.dumps({**damaged.manifest, "format": damaged.manifest["format"] + 1}))
    with pytest.raises(UserError, match="format"):
        open_dataset(damaged.url)
