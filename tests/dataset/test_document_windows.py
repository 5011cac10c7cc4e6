"""Proves that with join_documents=false windows lie in one document each and every token is scored as it should."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.config import TrainConfig, parse
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.loader import TrainLoader
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import DocumentWindows, document_windows
from gptpipe.errors import UserError
from gptpipe.model.loss import IGNORED
from tests.fixtures.datasets import END, Sample, make_long_document
from tests.fixtures.trainings import Training, dataset, new_training  # noqa: F401

CONTEXT = 16


def naive_windows(tokens: list[int], separator: int, context: int) -> list[tuple[int, int]]:
    """Documents one after another, each cut into windows of `context` targets until its last token is one."""
    found, begin = [], 0
    while begin < len(tokens):
        end = begin  # of the document's last token
        while end < len(tokens) - 1 and tokens[end] != separator:
            end += 1
        place = begin
        while place < end:
            found.append((place, min(context, end - place)))
            place += context
        begin = end + 1
    return found


@given(
    tokens=st.lists(st.sampled_from([0, 1, 2, 3, 9, 9]), max_size=120),
    context=st.integers(1, 40),
    ended=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_windows_are_those_of_a_naive_reading(tokens: list[int], context: int, ended: bool) -> None:
    tokens = [*tokens, 1, 9] if ended else [*tokens, 1]
    found = document_windows(np.array(tokens, dtype=np.uint16), 9, context)
    assert found.dtype == np.uint32
    assert [tuple(row) for row in found.tolist()] == naive_windows(tokens, 9, context)


@given(tokens=st.lists(st.integers(0, 9), min_size=1, max_size=120), context=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_every_token_but_a_document_s_first_is_a_target_once(tokens: list[int], context: int) -> None:
    scored = Counter(
        place
        for start, targets in document_windows(np.array([*tokens, 9], dtype=np.uint16), 9, context).tolist()
        for place in range(start + 1, start + targets + 1)
    )
    firsts = {0} | {i + 1 for i, token in enumerate(tokens) if token == 9}
    assert scored == Counter(set(range(len(tokens) + 1)) - firsts)


# --- the loader ----------------------------------------------------------------------------------------------


def loader(stream: TokenStream, closing: list[TrainLoader], **options: Any) -> TrainLoader:
    ranks = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    config = TrainConfig(**{"batch_size": 40, "seed": 1, "join_documents": False, **options})
    closing.append(TrainLoader(stream, context_length=CONTEXT, config=config, **ranks))
    return closing[-1]


@pytest.fixture
def stream(sample: Sample, tmp_path: Path) -> TokenStream:
    return TokenStream(sample.dataset, "train", TokenCache(tmp_path / "cache", 10**12))


def test_an_epoch_scores_every_token_but_each_document_s_first_once(
    sample: Sample, stream: TokenStream, closing: list[TrainLoader]
) -> None:
    loading = loader(stream, closing)
    wanted = naive_windows(sample.tokens.tolist(), END, CONTEXT)
    assert loading.order.count == len(wanted)
    for epoch in range(2):
        starts, lengths = loading.order.places(np.arange(epoch * len(wanted), (epoch + 1) * len(wanted)))
        assert sorted(zip(starts.tolist(), lengths.tolist(), strict=True)) == wanted
        scored = Counter(
            p for s, n in zip(starts.tolist(), lengths.tolist(), strict=True) for p in range(s + 1, s + n + 1)
        )
        firsts = {0, *(np.flatnonzero(sample.tokens == END) + 1).tolist()}
        assert scored == Counter(set(range(len(sample.tokens))) - firsts)


def test_each_window_lies_in_one_document_and_padding_is_not_scored(
    sample: Sample, stream: TokenStream, closing: list[TrainLoader]
) -> None:
    loading = loader(stream, closing)
    short = 0
    for step in range(2 * loading.order.count // 40):
        starts, lengths = loading.order.places(np.arange(40 * step, 40 * step + 40))
        inputs, targets, tokens, drawn = loading.next_batch()
        assert inputs.shape == targets.shape == (40, CONTEXT)
        assert inputs.dtype == targets.dtype == torch.int64
        assert int((inputs < 0).sum()) == 0  # the model embeds all of them
        assert tokens == int((targets != IGNORED).sum()) == lengths.sum() == drawn.sum()
        for x, y, start, length in zip(
            inputs.tolist(), targets.tolist(), starts.tolist(), lengths.tolist(), strict=True
        ):
            assert x[:length] == sample.tokens[start : start + length].tolist()
            assert y[:length] == sample.tokens[start + 1 : start + length + 1].tolist()
            assert END not in x[:length]
            assert set(y[length:]) <= {IGNORED}
            assert END not in y[: length - 1]
            short += length < CONTEXT
    assert short


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_a_batch_and_agree_on_its_number_of_targets(
    stream: TokenStream, closing: list[TrainLoader], world_size: int
) -> None:
    alone = loader(stream, closing)
    ranks = [loader(stream, closing, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(60):
        parts = [rank.next_batch() for rank in ranks]
        inputs, targets, tokens, drawn = alone.next_batch()
        assert torch.equal(torch.cat([part.inputs for part in parts]), inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), targets)
        assert {part.tokens for part in parts} == {tokens} == {int((targets != IGNORED).sum())}
        assert np.sum([part.corpora for part in parts], axis=0).tolist() == drawn.tolist()


def test_it_goes_on_from_any_sample(stream: TokenStream, closing: list[TrainLoader]) -> None:
    whole = loader(stream, closing)
    batches = [whole.next_batch() for _ in range(30)]
    for stop in (0, 1, 13, 29):
        again = loader(stream, closing)
        again.seek(40 * stop)
        for batch in batches[stop:]:
            found = again.next_batch()
            assert torch.equal(found.inputs, batch.inputs)
            assert torch.equal(found.targets, batch.targets)
            assert found.tokens == batch.tokens


@pytest.mark.parametrize("damage", ["zeros", "noise", "flipped", "cut", "empty", "tiny"])
def test_a_damaged_table_is_never_read_and_made_again(
    sample: Sample,
    stream: TokenStream,
    closing: list[TrainLoader],
    damage: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = loader(stream, closing)
    expected = whole.order.places(np.arange(whole.order.count))
    draw, tables = random.Random(3), list((tmp_path / "cache").rglob("*.windows"))
    assert len(tables) == len(stream.index)
    for path in tables:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        size = len(content)
        damaged = {
            "zeros": bytes(size),
            "noise": draw.randbytes(size),
            "flipped": bytes(changed),
            "cut": content[: draw.randrange(size)],
            "empty": b"",
            "tiny": b"abc",
        }
        path.unlink()
        path.write_bytes(damaged[damage])
    for is_told in (True, False):
        caplog.clear()
        again = loader(stream, closing)
        found = again.order.places(np.arange(again.order.count))
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
        assert (".windows" in caplog.text) == (is_told and damage != "empty")


def test_an_almost_full_cache_gives_the_same_windows(
    sample: Sample, stream: TokenStream, closing: list[TrainLoader], tmp_path: Path
) -> None:
    small = TokenStream(sample.dataset, "train", TokenCache(tmp_path / "small", 40_000))
    one, other = loader(stream, closing), loader(small, closing)
    for _ in range(60):
        a, b = one.next_batch(), other.next_batch()
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


def test_joined_and_not_joined_are_two_orders(stream: TokenStream, closing: list[TrainLoader]) -> None:
    joined, apart = loader(stream, closing, join_documents=True), loader(stream, closing)
    assert joined.order.count < apart.order.count
    assert joined.order.places(np.arange(50))[0].tolist() != apart.order.places(np.arange(50))[0].tolist()


def test_a_document_that_lies_in_several_shards_has_every_token_scored(
    tmp_path: Path, closing: list[TrainLoader]
) -> None:
    """A file larger than `shard_megabytes` is cut into ranges; it stays one document."""
    made, _ = make_long_document(tmp_path)
    (long,) = {
        entry["split"]
        for entry in pq.read_table(f"{made.url}/shards.parquet").to_pylist()
        for row in pq.read_table(f"{made.url}/{entry['path']}").to_pylist()
        if row["document_id"].startswith("long.txt")
    }
    stream = TokenStream(made, long, TokenCache(tmp_path / "cache", 10**12))
    assert len(stream.index) >= 2
    windows = DocumentWindows(stream, 0, stream.length, 1024)
    starts, lengths = windows.places(np.arange(windows.count))
    scored = np.zeros(stream.length, dtype=np.int64)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        scored[start + 1 : start + length + 1] += 1
    tokens = stream.read(0, stream.length)
    wanted = np.ones(stream.length, dtype=np.int64)
    wanted[0] = 0
    wanted[np.flatnonzero(tokens[:-1] == END) + 1] = 0
    assert np.flatnonzero(scored != wanted).tolist() == []


def test_two_level_shuffle_is_refused() -> None:
    with pytest.raises(UserError, match="join_documents") as caught:
        parse(TrainConfig, {"join_documents": False, "shuffle": "two-level"})
    assert "global" in str(caught.value)


def test_documents_too_short_for_a_target_are_no_windows_but_never_an_error() -> None:
    assert document_windows(np.array([9, 9, 1, 9, 9], dtype=np.uint16), 9, 4).tolist() == [[2, 1]]
    assert document_windows(np.array([9], dtype=np.uint16), 9, 4).tolist() == []


# --- training ------------------------------------------------------------------------------------------------


def losses(training: Training) -> list[float]:
    (file,) = (training.folder / "out").glob("*/metrics.jsonl")
    return [json.loads(line)["train/loss"] for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_one_and_two_ranks_train_to_the_same_losses(new_training: Callable[..., Training]) -> None:  # noqa: F811
    common = {"steps": 5, "warmup_steps": 1, "validate_every": 0, "checkpoint_every": 0, "join_documents": False}
    runs = {}
    for name, more in {"one": {"micro_batch": 3}, "two": {"nproc": 2}}.items():
        training = new_training(name, train={**common, **more}, model={"dropout": 0.0, "context_length": 48})
        training.finish()
        runs[name] = losses(training)
    assert len(runs["one"]) == 5
    assert runs["two"] == pytest.approx(runs["one"], rel=1e-5)
