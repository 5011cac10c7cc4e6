"""The decision promote or keep, as a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptpipe.config import PromoteConfig
from gptpipe.evaluation.confidence import Comparison, Interval, by_corpus, compare
from gptpipe.evaluation.copies import Copy
from gptpipe.generation.generate import Sample
from gptpipe.tokenizer import get_tokenizer
from gptpipe.tracking.promote import decide

BETTER = Comparison(-0.1, Interval(0.01, -0.12, -0.08), 0.9, 40)


@pytest.mark.parametrize(
    ("comparison", "promote", "reason"),
    [
        (BETTER, True, "better: 0.1000 nats per token better"),
        (Comparison(-0.01, Interval(0.01, -0.03, 0.01), 0.6, 40), False, "not surely better: 0.0100 nats"),
        (Comparison(0.1, Interval(0.01, 0.08, 0.12), 0.1, 40), False, "surely worse: 0.1000 nats per token worse"),
        (Comparison(0.0, Interval(0.0, 0.0, 0.0), 0.5, 40), False, "the same loss"),
        (Comparison(-0.5, None, 1.0, 3), False, "too few documents to be sure (3 of at least 10 documents)"),
        (Comparison(float("nan"), Interval(*[float("nan")] * 3), 0.5, 40), False, "not surely better"),
    ],
)
def test_decision(comparison: Comparison, promote: bool, reason: str) -> None:
    decision = decide(comparison, PromoteConfig())
    assert decision.promote is promote
    assert reason in decision.reason
    assert decision.checks[0].passed is promote


def test_the_gain_must_be_as_large_as_is_asked_for() -> None:
    assert decide(BETTER, PromoteConfig(min_improvement=0.079)).promote
    kept = decide(BETTER, PromoteConfig(min_improvement=0.081))
    assert not kept.promote
    assert "not surely better by 0.081 nats per token" in kept.reason


def test_what_would_change_the_decision_stands_beside_it_and_does() -> None:
    promoted = decide(BETTER, PromoteConfig())
    assert promoted.checks[0].otherwise == "with promote.min_improvement of 0.0800 or more"
    assert not decide(BETTER, PromoteConfig(min_improvement=0.08)).promote
    draws = np.random.default_rng(5)
    tokens = np.full(100, 500.0)
    noise = draws.normal(0, 0.1, 100) * tokens
    comparison = compare(np.zeros(100), noise - (noise.mean() + 0.012 * 500), tokens)
    kept = decide(comparison, PromoteConfig())
    assert not kept.promote
    larger, _, rest = (
        kept.checks[0].otherwise.removeprefix("with a difference below ").partition(", or this one on about ")
    )
    documents = int(rest.removesuffix(" documents").replace(",", ""))
    assert decide(
        compare(np.zeros(100), noise - noise.mean() + (float(larger) - 1e-4) * tokens, tokens), PromoteConfig()
    ).promote
    times = -(-documents // 100)
    again = compare(np.zeros(100 * times), np.tile(noise - (noise.mean() + 0.012 * 500), times), np.tile(tokens, times))
    assert decide(again, PromoteConfig()).promote


def test_a_corpus_that_surely_gets_worse_keeps_the_champion() -> None:
    corpora = {"web": BETTER, "code": Comparison(0.2, Interval(0.05, 0.08, 0.32), 0.2, 30)}
    kept = decide(BETTER, PromoteConfig(max_regression=0.07), corpora)
    assert not kept.promote
    assert "surely worse by over 0.07 nats per token on code (+0.2000)" in kept.reason
    assert [check.passed for check in kept.checks] == [True, False, True]
    assert decide(BETTER, PromoteConfig(max_regression=0.09), corpora).promote
    few = {"web": BETTER, "code": Comparison(0.2, None, 0.0, 3)}
    assert decide(BETTER, PromoteConfig(), few).promote
    assert "| **no** | +0.2000, +0.0800 to +0.3200 | code: not surely worse by over 0.07 nats per token |" in kept.table


def sample_of(text: str) -> Sample:
    return Sample("say: ", "say: " + text, get_tokenizer("gpt2").encode(text))


FINE = sample_of("Jack Gisburn rather a cheap genius, though a good fellow enough, so it was no great surprise to me.")
SILENT = sample_of(" \n" * 40)
COPY = Copy(61, "I had always thought | Jack Gisburn", "say: ", "books:verdict|1.txt")


def test_what_the_model_says_decides_too() -> None:
    rules = PromoteConfig(max_degenerate=0.4)
    assert decide(BETTER, rules, samples=[FINE, FINE, SILENT]).promote
    kept = decide(BETTER, rules, samples=[FINE, SILENT])
    assert not kept.promote
    assert kept.reason.startswith("50% of the samples are degenerate, though 0.1000 nats per token better")
    assert kept.checks[1].otherwise == "with promote.max_degenerate of 0.5 or more"
    assert decide(BETTER, PromoteConfig(max_degenerate=0.5), samples=[FINE, SILENT]).promote
    assert not decide(None, rules, samples=[SILENT]).promote
    assert decide(None, rules, samples=[FINE]).reason == "there was no champion"
    assert len(decide(BETTER, rules, samples=[sample_of("yes")]).checks) == 2  # too short to be judged


def test_training_text_given_back_word_for_word_keeps_the_champion() -> None:
    kept = decide(BETTER, PromoteConfig(max_copied=60), samples=[FINE], copies=[COPY])
    assert not kept.promote
    assert "61 tokens of books:verdict|1.txt come back word for word: “I had always thought | Jack" in kept.reason
    assert r"books:verdict\|1.txt" in kept.table
    assert kept.checks[-1].otherwise == "with promote.max_copied of 61 or more"
    assert decide(BETTER, PromoteConfig(max_copied=61), samples=[FINE], copies=[COPY]).promote
    assert len(decide(BETTER, PromoteConfig(max_copied=0), samples=[FINE]).checks) == 2


def test_bounds_per_token_hold_for_a_difference_per_byte() -> None:
    """Four bytes in a token: a gain of 0.1 per byte is one of 0.4 per token."""
    better = replace(BETTER, unit="byte", units_per_token=4.0)
    assert decide(better, PromoteConfig(min_improvement=0.31)).promote
    kept = decide(better, PromoteConfig(min_improvement=0.33))
    assert not kept.promote
    assert "0.1000 nats per byte better" in kept.reason
    assert kept.checks[0].needed == "better by over 0.33 nats per token (0.0825 per byte), the whole interval"
    promoted = decide(better, PromoteConfig())
    assert promoted.checks[0].otherwise == "with promote.min_improvement of 0.3200 or more"
    assert not decide(better, PromoteConfig(min_improvement=0.32)).promote
    worse = Comparison(0.2, Interval(0.05, 0.08, 0.32), 0.2, 30, "byte", 4.0)
    corpora = {"web": better, "code": worse}
    assert not decide(better, PromoteConfig(max_regression=0.3), corpora).promote
    assert decide(better, PromoteConfig(max_regression=0.33), corpora).promote


def test_noise_is_seldom_promoted_and_seldom_stopped_by_one_of_three_corpora() -> None:
    """A gain of four standard errors, and none at all, over corpora of very different sizes."""
    draws, sizes, trials = np.random.default_rng(3), (400, 60, 15), 400
    corpus = np.repeat(["large", "middle", "small"], sizes)
    noise = gain = 0
    rules = PromoteConfig(max_regression=0.0)
    for _ in range(trials):
        tokens = np.exp(draws.normal(6, 1.0, len(corpus))).round().clip(5)
        each = 0.5 * np.sqrt(tokens) * draws.standard_normal(len(corpus))
        zero = np.zeros(len(corpus))
        better = each - 4 * 0.5 / np.sqrt(tokens.sum()) * tokens
        noise += decide(compare(zero, each, tokens), rules, by_corpus(zero, each, tokens, corpus)).promote
        gain += decide(compare(zero, better, tokens), rules, by_corpus(zero, better, tokens, corpus)).promote
    assert noise / trials <= 0.025 + 2.6 * np.sqrt(0.025 * 0.975 / trials)
    assert gain / trials >= 0.97 * 0.95 - 2.6 * np.sqrt(0.05 / trials)


def test_one_corpus_alone_is_not_looked_at_twice() -> None:
    ones = np.ones(20)
    assert by_corpus(ones, ones, ones, np.repeat("web", 20)) == {}
    assert set(by_corpus(ones, ones, ones, np.repeat(["web", "code"], 10))) == {"web", "code"}
