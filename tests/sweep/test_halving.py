"""Who goes on: those of the whole field's best, whatever order they come in."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gptpipe.sweep.halving import Contender, promoted

RUNGS = [10, 30, 90]


def all_at_once(losses: list[dict[int, float]], fails: dict[int, int], reduction: int) -> dict[int, int]:
    """The rung that each comes to last, where all wait for all: successive halving by its definition.

    One that fails on its way to a rung is as if it had never been, from the beginning.
    """
    last = dict.fromkeys(range(len(losses)), RUNGS[0])
    here, places = [number for number in last if number not in fails], len(losses)
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
    st.dictionaries(st.integers(0, 13), st.sampled_from([*RUNGS, 999]), max_size=4),
    st.integers(2, 4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_the_same_go_on_as_where_all_wait_for_all(
    losses: list[dict[int, float]],
    fails: dict[int, int],
    reduction: int,
    parallel: int,
    chance: random.Random,
) -> None:
    """Trainings that take turns by chance, some at once: nobody goes on in vain, and at the end nobody is missing.

    Some fail on their way to a rung.
    """
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
        if fails.get(number) == rung:
            field[number] = replace(field[number], has_ended=True, has_failed=True)
        elif rung == 999:
            field[number] = replace(field[number], has_ended=True)
        else:
            known = {**field[number].losses, rung: losses[number][rung]}
            field[number] = replace(field[number], losses=known, stopped_at=rung)
    failed = {number: rung for number, rung in fails.items() if last.get(number, 0) == rung}
    due = all_at_once(losses, failed, reduction)
    assert {number: rung for number, rung in last.items() if number not in failed} == {
        number: rung for number, rung in due.items() if number not in failed
    }


def test_one_goes_on_before_all_have_come_where_none_can_pass_it() -> None:
    """Four places of twelve: with one still out, the first three are sure of theirs, the fourth is not."""
    field = [Contender(number, {10: float(number)}, stopped_at=10) for number in range(11)]
    assert promoted(field, 12, [10], 3) == [0, 1, 2]
    assert promoted([*field, Contender(11, {})], 12, [10], 3) == [0, 1, 2]
    assert promoted([*field, Contender(11, {10: 0.5}, stopped_at=10)], 12, [10], 3) == [0, 11, 1, 2]


def test_the_next_best_takes_the_place_of_one_that_fails() -> None:
    """Three of nine go on, and one of those; the best fails on its way, before or behind the first rung."""
    others = [
        *(Contender(number, {10: float(number), 30: 1.0}, stopped_at=30) for number in (2, 3)),
        *(Contender(number, {10: float(number)}, stopped_at=10) for number in range(4, 10)),
    ]
    for losses in ({}, {10: 1.0}, {10: 1.0, 30: 0.5}):
        failed = Contender(0, losses, has_ended=True, has_failed=True)
        assert promoted([failed, *others], 9, [10, 30], 3) == [4]
    last = replace(others[2], losses={10: 4.0, 30: 2.0}, stopped_at=30)
    assert promoted([failed, *others[:2], last, *others[3:]], 9, [10, 30], 3) == [2]


def test_who_has_no_place_at_a_rung_does_not_count_at_the_next() -> None:
    """Two that an earlier search has finished, and that are not among the best any more."""
    finished = [Contender(number, {10: 9.0, 30: 9.0}, has_ended=True) for number in (0, 1)]
    stopped = [Contender(number, {10: 5.0}, stopped_at=10) for number in range(5, 9)]
    running = [Contender(2, {10: 1.0}), Contender(3, {10: 1.1})]
    first = Contender(4, {10: 1.2, 30: 2.0}, stopped_at=30)
    assert promoted([*finished, *running, first, *stopped], 9, [10, 30], 3) == []
    arrived = [replace(each, losses={10: 1.0, 30: 3.0}, stopped_at=30) for each in running]
    assert promoted([*finished, *arrived, first, *stopped], 9, [10, 30], 3) == [4]
