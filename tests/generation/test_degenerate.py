"""Degenerate text is called so, and a person's text is not."""

from __future__ import annotations

import argparse
import inspect
import textwrap

import pytest

from gptpipe.generation.degenerate import degenerate_share, fault_of, repeated_share
from gptpipe.generation.generate import Sample
from gptpipe.tokenizer import get_tokenizer


def sample_of(text: str, prompt: str = "def ") -> Sample:
    return Sample(prompt, prompt + text, get_tokenizer("gpt2").encode(text))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (".\n" * 40, "says nothing"),
        (" " * 200 + ".", "says nothing"),
        ("\n\n\n\t" * 30, "says nothing"),
        ("a " * 60, "repeats itself"),
        ("    self.assertEqual(self, self)\n" * 12, "repeats itself"),
        ("I am the best I am the best " * 8, "repeats itself"),
        ("yes", ""),
        ("", ""),
        (inspect.getsource(textwrap.wrap), ""),
        (
            "\n"
            + " " * 24
            + "if value is None:\n"
            + " " * 28
            + "return other[name]\n"
            + " " * 24
            + "raise KeyError(name)\n",
            "",
        ),
        ("Jack Gisburn rather a cheap genius, though a good fellow enough, so it was no great surprise to me.", ""),
    ],
)
def test_a_continuation_and_its_fault(text: str, fault: str) -> None:
    assert fault_of(sample_of(text)) == fault


def test_the_prompt_is_no_part_of_what_is_judged() -> None:
    assert (
        fault_of(sample_of(".\n" * 40, prompt="Every effort moves you and all of us a long way. " * 9))
        == "says nothing"
    )


def test_repeated_groups_are_counted() -> None:
    assert repeated_share(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repeated_share([str(number) for number in range(50)]) == 0
    assert repeated_share(["a", "b"]) == 0


def test_hardly_any_piece_of_real_code_is_called_degenerate() -> None:
    tokenizer = get_tokenizer("gpt2")
    ids = tokenizer.encode("".join(inspect.getsource(module) for module in (argparse, inspect, textwrap)))
    pieces = [tokenizer.decode(ids[start : start + 80]) for start in range(0, len(ids) - 80, 80)]
    share = degenerate_share([sample_of(piece) for piece in pieces])
    assert share is not None
    assert share < 0.02


def test_the_share_leaves_out_what_is_too_short_to_be_judged() -> None:
    assert degenerate_share([sample_of("yes")]) is None
    assert (
        degenerate_share([sample_of("yes"), sample_of(".\n" * 40), sample_of("".join(map(chr, range(65, 120))))]) == 0.5
    )
