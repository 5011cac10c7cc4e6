"""Proves that intervals cover what they say, and that a comparison on the same documents sees small differences."""

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


@pytest.mark.parametrize("count", [500, 20_000])  # the second is drawn in groups
def test_the_standard_error_is_that_of_a_ratio(count: int) -> None:
    nats, tokens = documents(np.random.default_rng(2), count)
    interval = mean_interval(nats, tokens)
    assert interval is not None
    mean = nats.sum() / tokens.sum()
    linear = np.sqrt(((nats - mean * tokens) ** 2).sum()) / tokens.sum()  # the delta method
    assert interval.standard_error == pytest.approx(linear, rel=0.08)
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
