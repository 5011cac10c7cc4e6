"""Text that says nothing: almost blank, or the same words over and over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from gptpipe.generation.generate import Sample

Fault = Literal["", "says nothing", "repeats itself"]
_FEWEST_TOKENS = 16  # a shorter text is not judged: it may be an answer of one word
_WORDS = 0.1  # share of letters and digits below which a text says nothing
_GRAM = 4
_REPEATED = 0.5  # of its groups of four words
_WORD = re.compile(r"\w+|[^\w\s]")  # not tokens: GPT-2 has one for each space, and indented code would repeat itself


def fault_of(sample: Sample) -> Fault:
    """Why a continuation is degenerate; empty where it is not, or too short to tell.

    It says nothing where less than a tenth of it is letters and digits, or where it ended by itself before any. It
    repeats itself where half of its groups of four words or punctuation marks were there before: seq-rep-4 of Welleck
    et al. 2019, "Neural Text Generation with Unlikelihood Training". Of pieces of 80 tokens of Python's standard
    library 0.6 % do, of a story none.
    """
    text = sample.continuation
    if not _is_judged(sample):
        return ""
    if is_blank(text):
        return "says nothing"
    return "repeats itself" if repeated_share(_WORD.findall(text)) >= _REPEATED else ""


def is_blank(text: str) -> bool:
    """Whether less than a tenth of a text is letters and digits."""
    return sum(character.isalnum() for character in text) < _WORDS * max(1, len(text))


def _is_judged(sample: Sample) -> bool:
    """A short text is, where the model itself ended it without a letter."""
    if len(sample.tokens) >= _FEWEST_TOKENS:
        return True
    return sample.ended == "end_of_text" and not any(character.isalnum() for character in sample.continuation)


def repeated_share(words: Sequence[str]) -> float:
    """Share of the groups of four words that occurred before in the same text; 0 where there is none."""
    groups = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0


def degenerate_share(samples: Sequence[Sample]) -> float | None:
    """Share of the continuations with a fault; None where there is none that can be judged."""
    judged = [sample for sample in samples if _is_judged(sample)]
    return sum(bool(fault_of(sample)) for sample in judged) / len(judged) if judged else None
