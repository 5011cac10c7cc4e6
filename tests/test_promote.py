"""The decision champion or challenger, as a table."""

from __future__ import annotations

import pytest

from gptpipe.promote import Score, decide


@pytest.mark.parametrize(
    ("challenger", "champion", "promote", "reason"),
    [
        (Score(3.5, "a"), None, True, "there was no champion"),
        (Score(3.5, "a"), Score(3.6, "a"), True, "better: 3.5000 against the champion's 3.6000"),
        (Score(3.6, "a"), Score(3.5, "a"), False, "not better"),
        (Score(3.5, "a"), Score(3.5, "a"), False, "not better"),
        (
            Score(1.0, "b"),
            Score(3.5, "a"),
            False,
            "not comparable: the champion was scored on the a, this model on the b",
        ),
        (Score(float("nan"), "a"), Score(3.5, "a"), False, "not better"),
    ],
)
def test_decision(challenger: Score, champion: Score | None, promote: bool, reason: str) -> None:
    decision = decide(challenger, champion)
    assert decision.promote is promote
    assert reason in decision.reason
