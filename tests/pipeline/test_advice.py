"""What is said of a configuration: of unusual ones, with the number that would do, and of usual ones nothing."""

from __future__ import annotations

from typing import Any

import pytest

from gptpipe.config import load_config
from gptpipe.corpus.estimate import Amount
from gptpipe.evaluation.confidence import Comparison, Interval
from gptpipe.pipeline.advice import advice, usual_learning_rate


def amount(tokens: int = 2_000_000_000, held: int = 1000) -> Amount:
    return Amount(100, 8_000_000_000, 100_000, tokens + 10_000_000, held, 10_000_000, None)


LAST = Comparison(-0.01, Interval(0.005, -0.02, 0.0), 0.6, 400)


def said(tokens: int, text: Amount, last: Comparison | None = None, **changes: Any) -> list[str]:
    overrides = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
    return advice(load_config(overrides=["preset=gpt2-124m", *overrides]), text, 85_000_000, tokens, last)


def test_nothing_is_said_of_what_is_usual() -> None:
    assert said(1_700_000_000, amount(), LAST, train__learning_rate="6e-4") == []
    assert said(1_700_000_000, amount(), LAST, train__learning_rate="5e-3", train__optimizer="muon") == []


@pytest.mark.parametrize(
    ("tokens", "text", "changes", "words"),
    [
        (1_700_000_000, amount(200_000_000), {}, "the text is seen 8.5 times: beyond 4"),
        (
            100_000_000,
            amount(),
            {},
            "1.2 tokens per parameter without embeddings are few, about 20 spend FLOPs best: for this model 1.7 B",
        ),
        (17_000_000_000, amount(17_000_000_000), {}, "2e+02 tokens per parameter without embeddings are many"),
        (1_700_000_000, amount(held=4), {}, "4 documents held out: with fewer than 10"),
        (1_700_000_000, amount(), {"train__learning_rate": "1e-2"}, "a learning rate of 0.01 is high for 85 M"),
        (1_700_000_000, amount(), {"train__learning_rate": "1e-5"}, "a learning rate of 1e-05 is low for 85 M"),
        (
            1_700_000_000,
            amount(),
            {"train__optimizer": "muon", "train__learning_rate": "6e-3"},
            "a learning rate of 0.006 is high for 85 M parameters: 0.001 is usual",
        ),
    ],
)
def test_what_is_unusual_is_named(tokens: int, text: Amount, changes: dict[str, Any], words: str) -> None:
    (sentence,) = said(tokens, text, **{"train__learning_rate": "6e-4", **changes})
    assert words in sentence


def test_a_validation_set_too_small_for_the_gain_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 documents gave ±0.01; 100 give ±0.02, and a gain of 0.005 needs sixteen times as many."""
    changes = {"train__learning_rate": "6e-4", "promote__min_improvement": "0.005"}
    (sentence,) = said(1_700_000_000, amount(held=100), LAST, **changes)
    assert "known to ±0.0200 nats per token" in sentence
    assert "needs about 1,600 documents" in sentence
    assert said(1_700_000_000, amount(held=1600), LAST, **changes) == []
    assert said(1_700_000_000, amount(held=100), None, **changes) == []


def test_fine_tuning_may_have_a_low_rate_and_few_tokens() -> None:
    assert said(1_000_000, amount(), train__learning_rate="1e-5", init="/some/weights") == []


def test_the_usual_rate_falls_with_the_size() -> None:
    rates = [usual_learning_rate(size) for size in (10**6, 10**8, 10**9, 10**12)]
    assert rates == sorted(rates, reverse=True)
    assert usual_learning_rate(124_000_000) == pytest.approx(6.4e-4, rel=0.02)
