"""Proves which tokens each window predicts, and from how much, against the loops that others document."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptpipe.dataset.windows import evaluation_windows
from gptpipe.evaluation.windows import apart_windows, spread


def targets_of(windows: np.ndarray) -> list[tuple[int, int]]:
    """(target, tokens before it in its window) of every target that counts."""
    found = []
    for begin, length, scored in windows.tolist():
        found += [(begin + 1 + i, i + 1) for i in range(length - scored, length)]
    return found


@given(length=st.integers(2, 300), context=st.integers(1, 40), data=st.data())
def test_a_stride_predicts_every_token_once_from_enough_of_them(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    targets = targets_of(evaluation_windows(length, context, stride))
    assert [place for place, _ in targets] == list(range(1, length))
    assert all(seen <= min(place, context) for place, seen in targets)
    assert all(seen >= min(place, context - stride + 1) for place, seen in targets)


@given(length=st.integers(2, 300), context=st.integers(1, 40), data=st.data())
def test_a_stride_cuts_as_transformers_documents(length: int, context: int, data: st.DataObject) -> None:
    stride, previous, theirs = data.draw(st.integers(1, context)), 0, []
    for begin in range(0, length, stride):  # a window of n tokens predicts the last n - 1
        end = min(begin + context + 1, length)
        count = end - previous - (begin == 0)  # the first has nothing before it
        theirs.append((begin, end - 1 - begin, count))
        previous = end
        if end == length:
            break
    assert evaluation_windows(length, context, stride).tolist() == [list(window) for window in theirs]


def rolling(tokens: list[int], prefix: int, longest: int, overlap: int) -> list[tuple[list[int], int]]:
    """What a model reads and how many of the last tokens it is scored on, as the harness describes its loop: the first
    window from the prefix on, each later one as far back as the model can read."""
    read = [prefix, *tokens]
    found, done = [], 0
    while done < len(tokens):
        count = min(longest if done == 0 else longest - overlap + 1, len(tokens) - done)
        end = done + count  # in `read`, inputs end here
        found.append((read[max(0, end - longest) : end], count))
        done = end
    return found


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6), context=st.integers(1, 20), data=st.data())
def test_documents_apart_are_cut_as_the_harness_does(sizes: list[int], context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    stream = [(i * 7919) % 1000 for i in range(sum(sizes) + len(sizes))]
    ends = np.cumsum(np.array(sizes) + 1) - 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    for end in ends:
        stream[end] = 5000  # the separator
    windows = apart_windows(starts, ends, context, stride).tolist()
    ours = [([5000, *stream][begin + 1 : begin + 1 + length], scored) for begin, length, scored in windows]
    theirs = []
    for start, end in zip(starts, ends, strict=True):
        theirs += rolling(stream[start:end], 5000, context, context - stride + 1)
    assert ours == theirs


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=300), limit=st.integers(1, 200_000))
def test_a_limit_takes_documents_from_everywhere(sizes: list[int], limit: int) -> None:
    chosen = spread(np.array(sizes), limit)
    assert len(chosen) == len(set(chosen.tolist()))
    assert chosen.tolist() == sorted(chosen.tolist())
    assert len(chosen) == 1 or sum(sizes[i] for i in chosen) <= limit
    if limit >= sum(sizes):
        assert len(chosen) == len(sizes)
    gaps = np.diff([-1, *chosen, len(sizes)])
    assert gaps.max() <= 2.7 * len(sizes) / len(chosen) + 1  # no large stretch without any
