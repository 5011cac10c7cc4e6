"""Successive halving: which of the trainings that were stopped at a rung go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """A training as the others see it.

    Attributes:
        losses: validation loss by step, at the rungs that it has come to. stopped_at: the rung at which it waits; 0
            where it does not. has_ended: it comes to no further rung. has_failed: and nothing came of it.
    """

    number: int
    losses: Mapping[int, float]
    stopped_at: int = 0
    has_ended: bool = False
    has_failed: bool = False

    def comes_no_more(self, rung: int) -> bool:
        """Whether it has no loss at this rung and will have none: it has ended, or has passed it unseen."""
        return self.has_ended or self.stopped_at > rung or any(step > rung for step in self.losses)


def promoted(contenders: Sequence[Contender], expected: int, rungs: Sequence[int], reduction: int) -> list[int]:
    """Numbers of those that wait and surely go on, those that have come farthest first.

    One of `reduction` goes on at each rung, but always one at least. In the algorithm of Li et al. (2020), ASHA, a
    training goes on when it is among the best of those that have come so far, so that the first ones go on for nothing.
    Here it is known how many there will be: one goes on as soon as it is among the best whatever those come to that are
    still out. The next best takes the place of one that fails.

    Args:
        contenders: those that have begun. expected: how many there are in the end. rungs: steps, ascending.
    """
    go_on: list[Contender] = []
    places, coming, candidates = expected, expected, list(contenders)
    for rung in rungs:
        places = max(1, places // reduction)
        out = max(0, coming - sum(rung in each.losses or each.comes_no_more(rung) for each in candidates))
        ranking = [
            each for each in candidates if math.isfinite(each.losses.get(rung, math.nan)) and not each.has_failed
        ]
        ranking.sort(key=lambda each: (each.losses[rung], each.number))
        sure = ranking[: max(0, places - out)]
        go_on = [*(each for each in sure if each.stopped_at == rung), *go_on]
        coming, candidates = min(places, len(ranking) + out), sure
    return [each.number for each in go_on]
