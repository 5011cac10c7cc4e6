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
            where it does not. has_ended: it has failed or is finished, and comes to no further rung.
    """

    number: int
    losses: Mapping[int, float]
    stopped_at: int = 0
    has_ended: bool = False


def promoted(contenders: Sequence[Contender], expected: int, rungs: Sequence[int], reduction: int) -> list[int]:
    """Numbers of those that wait and surely go on, those that have come farthest first.

    One of `reduction` goes on at each rung, but always one at least. In the algorithm of Li et al. (2020), ASHA, a
    training goes on when it is among the best of those that have come so far, so that the first ones go on for nothing.
    Here it is known how many there will be: one goes on as soon as it is among the best whatever those come to that are
    still out. Nothing is trained in vain, and where many go on side by side, none waits for the last without need.

    Args:
        contenders: those that have begun. expected: how many there are in the end. rungs: steps, ascending.
    """
    go_on: list[int] = []
    places, coming, candidates = expected, expected, {each.number for each in contenders}
    for rung in rungs:
        places = max(1, places // reduction)
        here = {each.number: each.losses[rung] for each in contenders if rung in each.losses}
        lost = sum(each.has_ended and each.number in candidates and each.number not in here for each in contenders)
        out = max(0, coming - lost - len(here))  # those that may still come
        ranking = sorted((n for n in here if math.isfinite(here[n])), key=lambda n: (here[n], n))
        sure = set(ranking[: max(0, places - out)])
        go_on += [each.number for each in contenders if each.number in sure and each.stopped_at == rung]
        candidates = set(ranking[:places])
        coming = min(places, len(ranking) + out)
    return sorted(go_on, key=lambda number: -next(each.stopped_at for each in contenders if each.number == number))
