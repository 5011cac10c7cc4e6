"""Who goes on: those of the whole field's best, whatever order they come in."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptpipe.sweep.halving import Contender, promoted

RUNGS = [10, 30, 90]


def all_at_once(losses: list[dict[int, float]], reduction: int) -> dict[int, int]:
    """The rung that each comes to last, where all wait for all: successive halving by its definition."""
    last = dict.fromkeys(range(len(losses)), RUNGS[0])
    here, places = list(last), len(losses)
    for rung, following in zip(RUNGS, [*RUNGS[1:], 999], strict=True):
        places = max(1, places // reduction)
        finite = [number for number in here if math.isfinite(losses[number][rung])]
        here = sorted(finite, key=lambda number: (losses[number][rung], number))[:places]
        last |= dict.fromkeys(here, following)
    return last


@given(
    st.lists(
        st.fixed_dictionaries({rung: st.sampled_from([1.0, 2.0, 3.0, 4.0, math.inf, math.nan]) for rung in RUNGS}),
        min_size=1,
        max_size=14,
    ),
    st.integers(2, 4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_the_same_go_on_as_where_all_wait_for_all(
    losses: list[dict[int, float]], reduction: int, parallel: int, chance: random.Random
) -> None:
    """Trainings that take turns by chance, some at once: nobody goes on in vain, and at the end nobody is missing."""
    field: dict[int, Contender] = {}
    at = dict[int, int]()  # the rung that a training that goes on is to come to next, 999 for its end
    last = dict[int, int]()
    while True:
        while len(at) < parallel:
            ready = promoted(list(field.values()), len(losses), RUNGS, reduction)
            if ready:
                number = ready[0]
                stopped = field[number].stopped_at
                at[number] = next((rung for rung in RUNGS if rung > stopped), 999)
                field[number] = replace(field[number], stopped_at=0)
            elif len(field) < len(losses):
                number = len(field)
                field[number], at[number] = Contender(number, {}), RUNGS[0]
            else:
                break
        if not at:
            break
        number = chance.choice(sorted(at))
        rung = last[number] = at.pop(number)
        if rung == 999:
            field[number] = replace(field[number], has_ended=True)
        else:
            known = {**field[number].losses, rung: losses[number][rung]}
            field[number] = replace(field[number], losses=known, stopped_at=rung)
    assert last == all_at_once(losses, reduction)


def test_one_goes_on_before_all_have_come_where_none_can_pass_it() -> None:
    """Four places of twelve: with one still out, the first three are sure of theirs, the fourth is not."""
    field = [Contender(number, {10: float(number)}, stopped_at=10) for number in range(11)]
    assert promoted(field, 12, [10], 3) == [0, 1, 2]
    assert promoted([*field, Contender(11, {})], 12, [10], 3) == [0, 1, 2]
    assert promoted([*field, Contender(11, {10: 0.5}, stopped_at=10)], 12, [10], 3) == [0, 1, 2, 11]


@pytest.mark.parametrize("rung", [10, 30])
def test_one_that_fails_is_not_waited_for(rung: int) -> None:
    losses = {10: 1.0} if rung == 30 else {}
    field = [
        Contender(0, losses, has_ended=True),
        *(Contender(number, {10: float(number), 30: 1.0}, stopped_at=30) for number in (2, 3)),
        *(Contender(number, {10: float(number)}, stopped_at=10) for number in range(4, 10)),
    ]
    assert promoted(field, 9, [10, 30], 3) == ([2] if rung == 30 else [4])
