"""Intervals cover what they say, and a comparison on the same documents sees what is there and no more."""

from __future__ import annotations

import numpy as np
import pytest

from gptpipe.evaluation.confidence import FEWEST, compare, mean_interval


def documents(draws: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of documents whose loss a token differs and grows with their length."""
    tokens = draws.integers(20, 2000, count)
    return tokens * (3 + tokens / 4000 + 0.4 * draws.standard_normal(count)), tokens


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1)
    nats, tokens = documents(draws, 2_000_000)
    truth = nats.sum() / tokens.sum()
    covered = 0
    for _ in range(150):
        interval = mean_interval(*documents(draws, 60))
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / 150 <= 0.99  # 95 % of 150 is 142.5, with a standard deviation of 2.7


LENGTHS = {
    "alike": lambda draws, count: np.exp(draws.normal(6, 1.0, count)),
    "very different": lambda draws, count: np.exp(draws.normal(6, 1.5, count)),
    "a few hold most": lambda draws, count: 200 * (draws.pareto(1.5, count) + 0.2),
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("count", [10, 30, 300])
@pytest.mark.parametrize("common", [0.0, 0.03])
def test_no_better_than_chance_is_seldom_taken_for_better(lengths: str, count: int, common: float) -> None:
    """Noise in tokens, and noise that a document's tokens have in common, over documents of all lengths."""
    draws, wrong, trials = np.random.default_rng(1), 0, 1000
    for _ in range(trials):
        tokens = LENGTHS[lengths](draws, count).round().clip(5)
        noise = 0.5 * np.sqrt(tokens) * draws.standard_normal(count)
        noise += common * tokens * draws.standard_normal(count)
        interval = compare(np.zeros(count), noise, tokens).interval
        assert interval is not None
        wrong += interval.high < 0
    assert wrong / trials <= 0.025 + 2.6 * np.sqrt(0.025 * 0.975 / trials)


@pytest.mark.parametrize(("gain", "least"), [(2, 0.5), (4, 0.97)])
def test_a_gain_is_seen_as_often_as_its_size_allows(gain: int, least: float) -> None:
    """What a test at that level can reach: with a gain of two standard errors every second time."""
    draws, found, trials = np.random.default_rng(2), 0, 1000
    for _ in range(trials):
        tokens = np.exp(draws.normal(6, 1.0, 2000)).round().clip(5)
        noise = 0.5 * np.sqrt(tokens) * draws.standard_normal(2000)
        better = gain * 0.5 / np.sqrt(tokens.sum())
        interval = compare(np.zeros(2000), noise - better * tokens, tokens).interval
        assert interval is not None
        found += interval.high < 0
    assert found / trials >= least - 2.6 * np.sqrt(least * (1 - least) / trials)


@pytest.mark.parametrize("count", [500, 20_000])
def test_the_standard_error_is_that_of_a_ratio(count: int) -> None:
    nats, tokens = documents(np.random.default_rng(2), count)
    interval = mean_interval(nats, tokens)
    assert interval is not None
    mean = nats.sum() / tokens.sum()
    linear = np.sqrt(((nats - mean * tokens) ** 2).sum()) / tokens.sum()  # the delta method
    assert interval.standard_error == pytest.approx(linear, rel=0.01)
    assert interval.low < mean < interval.high


def test_a_small_difference_shows_on_the_same_documents() -> None:
    draws = np.random.default_rng(3)
    nats, tokens = documents(draws, 200)
    better = nats - tokens * (0.01 + 0.02 * draws.standard_normal(200))
    found = compare(nats, better, tokens)
    alone = mean_interval(nats, tokens)
    assert alone is not None
    assert found.interval is not None
    assert found.difference == pytest.approx((better - nats).sum() / tokens.sum())
    assert found.interval.high < 0 < alone.standard_error
    assert found.interval.standard_error < alone.standard_error / 5
    assert found.won == (better < nats).mean()
    assert "nats per token better on the same documents" in found.sentence
    assert "chance" not in found.sentence
    assert found.sentence.count(f"{abs(found.difference):.4f}") == 1  # one number is told once
    same = compare(nats, nats, tokens)
    assert (same.difference, same.won) == (0, 0.5)
    assert same.sentence == "the same loss on the same documents"
    noise = nats + tokens * 0.02 * draws.standard_normal(200)
    assert "which may be chance" in compare(nats, noise - (noise - nats).mean(), tokens).sentence


def test_too_few_documents_have_no_interval_and_unscored_ones_do_not_count() -> None:
    nats, tokens = documents(np.random.default_rng(4), FEWEST)
    assert mean_interval(nats, tokens) is not None
    assert mean_interval(nats[1:], tokens[1:]) is None
    tokens[0] = nats[0] = 0
    assert mean_interval(nats, tokens) is None
    assert "too few for an interval" in compare(nats, nats + 1, tokens).sentence
