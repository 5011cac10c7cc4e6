"""Boxes in columns, and arrows that go around them."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from gptpipe.tracking.layers import layers

NAMES = [str(number) for number in range(9)]


@given(st.sets(st.sampled_from(list(combinations(NAMES, 2)))))
def test_boxes_stand_after_what_they_are_made_of_and_arrows_have_places_of_their_own(
    edges: set[tuple[str, str]],
) -> None:
    columns, ways = layers(NAMES, edges)
    column_of = {stop: number for number, column in enumerate(columns) for stop in column}
    stops = [stop for column in columns for stop in column]
    assert len(stops) == len(set(stops))  # no two at one place
    assert set(stops) == {*NAMES, *(stop for way in ways.values() for stop in way)}
    assert ways.keys() == edges
    for (before, after), way in ways.items():
        assert [column_of[stop] for stop in way] == list(range(column_of[before] + 1, column_of[after]))


def test_two_chains_do_not_cross() -> None:
    """However their boxes are named."""
    columns, ways = layers(["a", "b", "y", "x", "p", "q"], {("a", "x"), ("x", "p"), ("b", "y"), ("y", "q"), ("a", "p")})
    place = {stop: number for column in columns for number, stop in enumerate(column)}
    assert (place["a"] < place["b"]) == (place["x"] < place["y"]) == (place["p"] < place["q"])
    assert (place[ways["a", "p"][0]] < place["y"]) == (place["a"] < place["b"])
