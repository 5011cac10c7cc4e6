"""Where the boxes of a graph stand when it is drawn from left to right, and how its arrows go around them."""

from __future__ import annotations

from graphlib import TopologicalSorter
from itertools import pairwise
from statistics import mean

_TURNS = 6  # in which columns are ordered by their neighbours, to the right and back


def layers(boxes: list[str], edges: set[tuple[str, str]]) -> tuple[list[list[str]], dict[tuple[str, str], list[str]]]:
    """Columns from the top down, and for each arrow the stops that it makes in the columns which it crosses.

    A box stands after all that it was made of. An arrow has a place of its own in every column between its ends, among
    the boxes there, and places are ordered by the mean of their neighbours' places, which leaves few crossings
    (Sugiyama, Tagawa and Toda 1981).
    """
    before: dict[str, set[str]] = {box: set() for box in boxes}
    for parent, child in edges:
        before[child].add(parent)
    depth: dict[str, int] = {}
    for box in TopologicalSorter(before).static_order():
        depth[box] = 1 + max((depth[each] for each in before[box]), default=-1)
    columns: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for box in boxes:
        columns[depth[box]].append(box)
    ways, neighbours = dict[tuple[str, str], list[str]](), dict[str, set[str]]()
    for parent, child in sorted(edges):
        between = range(depth[parent] + 1, depth[child])
        ways[parent, child] = [f"{parent} to {child} at {column}" for column in between]
        for column, stop in zip(between, ways[parent, child], strict=True):
            columns[column].append(stop)
        for one, other in pairwise((parent, *ways[parent, child], child)):
            neighbours.setdefault(one, set()).add(other)
            neighbours.setdefault(other, set()).add(one)
    for turn in range(_TURNS):
        order = range(1, len(columns)) if turn % 2 == 0 else range(len(columns) - 2, -1, -1)
        for here in order:
            beside = columns[here - 1 if turn % 2 == 0 else here + 1]
            middle = (len(beside) - 1) / 2
            place = {stop: number - middle for number, stop in enumerate(beside)}
            means = {
                stop: mean([place[each] for each in neighbours.get(stop, set()) if each in place] or [0.0])
                for stop in columns[here]
            }
            columns[here].sort(key=means.__getitem__)
    return columns, ways
