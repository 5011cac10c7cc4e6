"""Text that says nothing: almost blank, or the same words over and over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gptpipe.generate import Sample

Fault = Literal["", "says nothing", "repeats itself"]
_FEWEST_TOKENS = 16  # a shorter text is not judged: it may be an answer of one word
_WORDS = 0.1  # share of letters and digits below which a text says nothing
_GRAM = 4
_REPEATED = 0.5  # of its groups of four tokens; a person's text has below 0.05


def fault_of(sample: Sample) -> Fault:
    """Why a continuation is degenerate; empty where it is not, or too short to tell.

    It says nothing where less than a tenth of it is letters and digits. It repeats itself where half of its groups of
    four tokens were there before: seq-rep-4 of Welleck et al. 2019, "Neural Text Generation with Unlikelihood
    Training".
    """
    if len(sample.tokens) < _FEWEST_TOKENS:
        return ""
    text = sample.continuation
    if sum(character.isalnum() for character in text) < _WORDS * max(1, len(text)):
        return "says nothing"
    return "repeats itself" if repeated_share(sample.tokens) >= _REPEATED else ""


def repeated_share(tokens: Sequence[int]) -> float:
    """Share of the groups of four tokens that occurred before in the same text; 0 where there is none."""
    groups = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0


def degenerate_share(samples: Sequence[Sample]) -> float | None:
    """Share of the continuations with a fault; None where there is no continuation that is long enough to be judged."""
    judged = [sample for sample in samples if len(sample.tokens) >= _FEWEST_TOKENS]
    return sum(bool(fault_of(sample)) for sample in judged) / len(judged) if judged else None
