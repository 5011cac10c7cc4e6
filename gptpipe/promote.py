"""Champion or challenger: a pure function of two evaluations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A model's cross-entropy (nats a token) on a named text; only scores on the same text compare."""

    cross_entropy: float
    scored: str


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, and why, in one sentence."""

    promote: bool
    reason: str


def decide(challenger: Score, champion: Score | None) -> Decision:
    """Promote when there is no champion, or when the challenger's loss on the same text is lower."""
    if champion is None:
        return Decision(True, "there was no champion")
    if challenger.scored != champion.scored:
        return Decision(
            False,
            f"not comparable: the champion was scored on the {champion.scored}, this model on the {challenger.scored}",
        )
    difference = challenger.cross_entropy - champion.cross_entropy
    numbers = f"{challenger.cross_entropy:.4f} against the champion's {champion.cross_entropy:.4f} nats a token"
    if difference < 0:
        return Decision(True, f"better: {numbers}")
    return Decision(False, f"not better: {numbers}")
