"""Proves that a mixture draws corpora by weight, exactly in every cycle, each one's windows in its own epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.config import PipelineConfig, TrainConfig, load_config, parse
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.loader import TrainBatch, TrainLoader
from gptpipe.dataset.order import Mixture
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from tests.fixtures.datasets import Sample, make_sample

CYCLE = Mixture.CYCLE
KEY = ("dataset", 1, "context=8")
CONTEXT = 16
MIXTURE = {"c0": 5.0, "c1": 3.0, "c2": 1.0, "c3": 0.0, "c4": 0.5, "c5": 0.5}

weights_lists = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-9, 1e9), st.integers(1, 9).map(float), st.sampled_from([1e-300, 1e300])),
    min_size=1,
    max_size=12,
).filter(sum)


# --- the order of corpora ------------------------------------------------------------------------------------


@given(weights=weights_lists)
@settings(max_examples=150, deadline=None)
def test_the_shares_of_a_cycle_are_the_weights_to_the_nearest_sample(weights: list[float]) -> None:
    counts = Mixture(weights).counts
    total = sum(weights)
    assert counts.sum() == CYCLE
    for count, weight in zip(counts.tolist(), weights, strict=True):
        exact = weight / total * CYCLE
        assert count >= (1 if exact else 0)
        assert count == 0 if weight == 0 else True
        assert abs(count - exact) < 1 + len(weights)  # the largest gives what tiny weights need


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], [8192]),
        ([1.0, 1.0], [4096, 4096]),
        ([3.0, 1.0], [6144, 2048]),
        ([0.0, 1.0], [0, 8192]),
        ([1.0, 0.0, 1.0], [4096, 0, 4096]),
        ([1.0, 1.0, 1.0], [2731, 2731, 2730]),
        ([1e-12, 1.0], [1, 8191]),
        ([1.0, 1e-12, 1e-12, 0.0], [8190, 1, 1, 0]),
        ([2e300, 1e300], [5461, 2731]),
    ],
)
def test_known_shares(weights: list[float], counts: list[int]) -> None:
    assert Mixture(weights).counts.tolist() == counts


@given(weights=weights_lists, cycles=st.integers(1, 3), seed=st.integers(0, 2**62))
@settings(max_examples=30, deadline=None)
def test_each_corpus_s_samples_are_numbered_once_each(weights: list[float], cycles: int, seed: int) -> None:
    mixture = Mixture(weights)
    corpora, numbers = mixture.split(np.arange(cycles * CYCLE), "dataset", seed, "context=8")
    for corpus, count in enumerate(mixture.counts.tolist()):
        assert np.array_equal(np.sort(numbers[corpora == corpus]), np.arange(cycles * count))
        for cycle in range(cycles):
            part = slice(cycle * CYCLE, (cycle + 1) * CYCLE)
            here = numbers[part][corpora[part] == corpus]
            assert np.array_equal(np.sort(here), np.arange(cycle * count, (cycle + 1) * count))


@given(samples=st.lists(st.integers(0, 10**13), max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_sample_does_not_depend_on_what_it_is_asked_with(samples: list[int]) -> None:
    mixture = Mixture([5.0, 1.0, 0.1])
    corpora, numbers = mixture.split(np.array(samples, dtype=np.int64), *KEY)
    alone = [mixture.split(np.array([i]), *KEY) for i in samples]
    assert corpora.tolist() == [int(c[0]) for c, _ in alone]
    assert numbers.tolist() == [int(n[0]) for _, n in alone]


def test_corpora_are_mixed_everywhere_in_a_cycle_and_anew_in_each() -> None:
    """Bounds are 4.5 standard deviations of draws without replacement."""
    mixture = Mixture([3.0, 1.0])
    corpora = mixture.split(np.arange(6 * CYCLE), *KEY)[0].reshape(6, CYCLE)
    assert len({row.tobytes() for row in corpora}) == 6
    first = corpora.reshape(-1, 256).mean(axis=1)  # the share of the second corpus in 256 samples
    assert np.abs(first - 0.25).max() < 4.5 * (0.25 * 0.75 / 256) ** 0.5
    same = (corpora[:, 1:] == corpora[:, :-1]).mean()
    assert abs(same - (0.75**2 + 0.25**2)) < 4.5 * 0.5 / (6 * CYCLE) ** 0.5


# --- the loader ----------------------------------------------------------------------------------------------


def loader(sample: Sample, cache: Path, closing: list[TrainLoader], **options: Any) -> TrainLoader:
    ranks = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    config = TrainConfig(**{"batch_size": 64, "seed": 1, "mixture": MIXTURE, **options})
    stream = TokenStream(sample.dataset, "train", TokenCache(cache, 10**12))
    closing.append(TrainLoader(stream, context_length=CONTEXT, config=config, **ranks))
    return closing[-1]


def drawn_from(sample: Sample, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The corpus that each window lies in, whole."""
    names = list(sample.corpora)
    corpora = np.full(len(starts), -1)
    for number, name in enumerate(names):
        begin, end = sample.corpora[name]
        corpora[(starts >= begin) & (starts + lengths < end)] = number
    assert (corpora >= 0).all()  # none lies across two corpora
    return corpora


@pytest.mark.parametrize("shuffle", ["global", "two-level"])
def test_a_cycle_draws_by_weight_and_never_from_weight_zero(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader], shuffle: str
) -> None:
    loading = loader(sample, tmp_path, closing, shuffle=shuffle)
    counts = np.zeros(6)
    for cycle in range(2):
        places = loading.order.places(np.arange(cycle * CYCLE, (cycle + 1) * CYCLE))
        counts += np.bincount(drawn_from(sample, *places), minlength=6)
    wanted = np.array(list(MIXTURE.values())) / sum(MIXTURE.values())
    assert counts[3] == 0
    assert np.abs(counts / counts.sum() - wanted).max() < 1 / CYCLE


def test_the_weights_are_shares_of_the_tokens_drawn(sample: Sample, tmp_path: Path, closing: list[TrainLoader]) -> None:
    loading = loader(sample, tmp_path, closing)
    batches = [loading.next_batch() for _ in range(CYCLE // 64)]
    drawn = np.sum([batch.corpora for batch in batches], axis=0)
    assert drawn.sum() == sum(batch.tokens for batch in batches) == CYCLE * CONTEXT
    assert np.abs(drawn / drawn.sum() - np.array(list(MIXTURE.values())) / sum(MIXTURE.values())).max() < 1 / CYCLE


def test_documents_that_are_not_joined_are_still_drawn_by_weight_in_tokens(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    """`mixture` says "in tokens drawn": corpora of short documents, with short windows, too."""
    short = make_sample(tmp_path / "short", {"long": 200, "short": 200})
    root = Path(short.config.corpus[1].url)
    for i, file in enumerate(sorted(root.iterdir())):
        file.write_text(f"short {i}")
    made = tokenize(short.config, short.out)
    stream = TokenStream(open_dataset(made.dataset), "train", TokenCache(tmp_path / "cache", 10**12))
    config = TrainConfig(batch_size=64, mixture={"long": 1.0, "short": 1.0}, join_documents=False)
    loading = TrainLoader(stream, context_length=64, config=config)
    closing.append(loading)
    drawn = np.sum([loading.next_batch().corpora for _ in range(CYCLE // 64)], axis=0)
    assert drawn[1] / drawn.sum() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("shuffle", ["global", "two-level"])
def test_whole_cycles_read_the_windows_of_a_corpus_equally_often(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader], shuffle: str
) -> None:
    """Epochs of a corpus are counted in its own samples, so after whole cycles no window is more than one ahead."""
    loading = loader(sample, tmp_path, closing, shuffle=shuffle)
    starts, lengths = loading.order.places(np.arange(4 * CYCLE))
    corpora = drawn_from(sample, starts, lengths)
    for number, name in enumerate(sample.corpora):
        if not MIXTURE[name]:
            continue
        begin, end = sample.corpora[name]
        times = np.bincount((starts[corpora == number] - begin) // CONTEXT, minlength=(end - begin - 1) // CONTEXT)
        assert len(times) == (end - begin - 1) // CONTEXT
        assert times.max() - times.min() <= 1


def test_no_window_of_a_corpus_comes_twice_before_every_other_came_once(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    """In the order of time, as without a mixture."""
    loading = loader(sample, tmp_path, closing)
    starts, lengths = loading.order.places(np.arange(4 * CYCLE))
    corpora = drawn_from(sample, starts, lengths)
    for number, name in enumerate(sample.corpora):
        mine = starts[corpora == number]
        begin, end = sample.corpora[name]
        count = (end - begin - 1) // CONTEXT
        for epoch in range(len(mine) // count):
            assert len(set(mine[epoch * count : (epoch + 1) * count].tolist())) == count, name


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_hold_the_promised_windows_and_count_their_corpora(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader], world_size: int
) -> None:
    ranks = [loader(sample, tmp_path, closing, rank=rank, world_size=world_size) for rank in range(world_size)]
    for seen in (0, 64, 100_000_000):
        for rank in ranks:
            rank.seek(seen)
        for step in range(10):
            parts: list[TrainBatch] = [rank.next_batch() for rank in ranks]
            first = seen + 64 * step
            starts, lengths = ranks[0].order.places(np.arange(first, first + 64))
            corpora = drawn_from(sample, starts, lengths)
            rows = np.stack([sample.tokens[s : s + CONTEXT + 1] for s in starts.tolist()])
            assert torch.equal(torch.cat([part.inputs for part in parts]), torch.from_numpy(rows[:, :-1]))
            assert torch.equal(torch.cat([part.targets for part in parts]), torch.from_numpy(rows[:, 1:]))
            counted = np.sum([part.corpora for part in parts], axis=0)
            assert counted.tolist() == (np.bincount(corpora, minlength=6) * CONTEXT).tolist()
            assert {part.tokens for part in parts} == {64 * CONTEXT}
            for part in parts:
                assert part.corpora.sum() == len(part.inputs) * CONTEXT


def test_without_a_mixture_a_window_across_two_corpora_counts_for_the_one_it_begins_in(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    loading = loader(sample, tmp_path, closing, mixture={}, batch_size=1)
    bounds = np.array([begin for begin, _ in sample.corpora.values()] + [len(sample.tokens)])
    starts = loading.order.places(np.arange(loading.order.count))[0]
    across = np.flatnonzero(((bounds > starts[:, None] + 1) & (bounds <= starts[:, None] + CONTEXT)).any(axis=1))
    assert len(across)
    loading.seek(int(across[0]))
    start = int(starts[across[0]])
    wanted = [0] * 6
    wanted[int(np.searchsorted(bounds, start, side="right")) - 1] = CONTEXT
    assert loading.next_batch().corpora.tolist() == wanted


def test_the_mixture_changes_the_order_but_not_the_dataset(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    configs = [
        load_config(overrides=overrides, data=sample.config.model_dump())
        for overrides in ([], [f"train.mixture.{name}={weight}" for name, weight in MIXTURE.items()])
    ]
    assert configs[1].train.mixture == MIXTURE
    assert "train.mixture" not in configs[0].result_fields()
    assert configs[1].result_fields()["train.mixture"] == MIXTURE
    for config in configs:
        made = tokenize(config.data, sample.out)
        assert made.already_done
        assert made.id == sample.dataset.id
    one = loader(sample, tmp_path, closing).order.places(np.arange(500))[0]
    other = loader(sample, tmp_path, closing, mixture={**MIXTURE, "c0": 5.1}).order.places(np.arange(500))[0]
    assert one.tolist() != other.tolist()


def test_the_order_in_which_the_weights_are_given_does_not_matter(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    turned = dict(reversed(MIXTURE.items()))
    one, other = (loader(sample, tmp_path, closing, mixture=mixture) for mixture in (MIXTURE, turned))
    assert one.order.places(np.arange(500))[0].tolist() == other.order.places(np.arange(500))[0].tolist()


# --- bad mixtures --------------------------------------------------------------------------------------------


def test_an_unknown_and_a_missing_corpus_are_refused_by_name(
    sample: Sample, tmp_path: Path, closing: list[TrainLoader]
) -> None:
    with pytest.raises(UserError, match="no corpus 'wiki'") as caught:
        loader(sample, tmp_path, closing, mixture={**MIXTURE, "wiki": 1.0})
    assert caught.value.where == "train.mixture"
    assert "c0, c1, c2" in caught.value.hint
    with pytest.raises(UserError, match="no weight for c4, c5") as caught:
        loader(sample, tmp_path, closing, mixture=dict.fromkeys(("c0", "c1", "c2", "c3"), 1.0))
    assert caught.value.where == "train.mixture"


@pytest.mark.parametrize(
    "mixture",
    [{"a": 0.0}, {"a": 0, "b": 0}, {"a": 1.0, "b": -0.5}, {"a": -1.0}, {"a": float("nan")}, {"a": "much"}, ["a"], 3],
    ids=str,
)
def test_weights_that_are_none_are_refused(mixture: Any) -> None:
    with pytest.raises(UserError, match=r"mixture|number|dictionary|finite") as caught:
        parse(PipelineConfig, {"train": {"mixture": mixture}})
    assert caught.value.where.startswith("train")
