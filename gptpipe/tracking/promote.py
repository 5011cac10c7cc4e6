"""Promote or keep: a pure function of how the new model compares with the champion on the same text."""

from __future__ import annotations

from dataclasses import dataclass

from gptpipe.evaluation.confidence import FEWEST, Comparison


@dataclass(frozen=True)
class Decision:
    """Whether the new model becomes champion, and why, in one sentence."""

    promote: bool
    reason: str


NO_CHAMPION = Decision(True, "there was no champion")
ALREADY = Decision(True, "it is the champion already")


def decide(comparison: Comparison) -> Decision:
    """Promote when the new model is surely better: the whole 95 % interval of the paired difference is below zero.

    Args:
        comparison: of the new model's loss with the champion's, on the same documents.
    """
    if comparison.interval is None:
        few = f"{comparison.documents} of at least {FEWEST} documents"
        return Decision(False, f"too few documents to be sure ({few}): {comparison.sentence}")
    if comparison.interval.high < 0:
        return Decision(True, f"better: {comparison.sentence}")
    return Decision(False, f"not surely better: {comparison.sentence}")


def not_comparable(reason: str) -> Decision:
    """The champion cannot be scored on this text: it stays, and a person has to look."""
    return Decision(False, f"not comparable: {reason}")
