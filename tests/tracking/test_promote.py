"""The decision promote or keep, as a table."""

from __future__ import annotations

import numpy as np
import pytest

from gptpipe.evaluation.confidence import Comparison, Interval, compare
from gptpipe.tracking.promote import decide


@pytest.mark.parametrize(
    ("comparison", "promote", "reason"),
    [
        (Comparison(-0.1, Interval(0.01, -0.12, -0.08), 0.9, 40), True, "better: 0.1000 nats per token better"),
        (Comparison(-0.01, Interval(0.01, -0.03, 0.01), 0.6, 40), False, "not surely better: 0.0100 nats"),
        (Comparison(0.1, Interval(0.01, 0.08, 0.12), 0.1, 40), False, "not surely better: 0.1000 nats per token worse"),
        (Comparison(0.0, Interval(0.0, 0.0, 0.0), 0.5, 40), False, "the same loss"),
        (Comparison(-0.5, None, 1.0, 3), False, "too few documents to be sure (3 of at least 10 documents)"),
        (Comparison(float("nan"), Interval(*[float("nan")] * 3), 0.5, 40), False, "not surely better"),
    ],
)
def test_decision(comparison: Comparison, promote: bool, reason: str) -> None:
    decision = decide(comparison)
    assert decision.promote is promote
    assert reason in decision.reason


def test_noise_is_not_promoted_and_a_clear_gain_is() -> None:
    draws = np.random.default_rng(3)
    tokens = draws.integers(50, 3000, 60)
    champion = tokens * draws.normal(4, 0.3, 60)
    noise, gain = (champion + tokens * draws.normal(mean, 0.05, 60) for mean in (0.0, -0.05))
    assert not decide(compare(champion, noise, tokens)).promote
    assert decide(compare(champion, gain, tokens)).promote
