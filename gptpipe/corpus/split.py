"""Which documents are kept for validation: those with a small hash of their text, or the end of a single one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from gptpipe.config import DataConfig
from gptpipe.corpus.cuts import safe_places
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.records import read_records
from gptpipe.corpus.sources import Source
from gptpipe.corpus.text import facts_of_range
from gptpipe.dataset.left_out import LeftOut
from gptpipe.tokenizer import get_tokenizer

BY_POSITION, BY_HASH = "position", "hash of text"


def split_of(sha256: str, below: float) -> str:
    """train or validation, by the hash of a text: copies of a text are never on both sides."""
    return "validation" if _fraction(sha256) < below else "train"


def _fraction(sha256: str) -> float:
    return int(sha256[:16], 16) / 2**64


def split_rule(config: DataConfig, sources: list[Source], known_split: Callable[[Source], str]) -> str:
    """By position when there is one document, otherwise by a hash of each one's text.

    Args:
        known_split: how an earlier dataset split the only source there is; empty if none did.
    """
    if len(sources) != 1:
        return BY_HASH
    (source,) = sources
    if source.kind == "text":
        return BY_POSITION
    if known := known_split(source):
        return known
    records = read_records(source, ReadOptions.of(config), LeftOut())
    return BY_POSITION if len(list(islice(records, 2))) == 1 else BY_HASH


def hash_limit(config: DataConfig, sources: Iterable[Source]) -> float:
    """The fraction of all hashes below which a text is kept for validation: `config.validation` where that fits.

    Few documents may all fall on one side. Then the text with the smallest hash alone is kept for validation, or the
    one with the largest alone is trained on. A text that was trained on is not kept for validation as others are
    added: the smallest stays the smallest until a new one is smaller. Documents are read until both sides have one.
    """
    share = config.validation
    if not share:
        return share
    smallest: list[float] = []
    largest, sides = 0.0, set()
    for sha256 in _text_hashes(config, sources):
        sides.add(split_of(sha256, share))
        if len(sides) == 2:
            return share
        fraction = _fraction(sha256)
        smallest, largest = sorted({*smallest, fraction})[:2], max(largest, fraction)
    if len(smallest) < 2:  # all are the same text
        return share
    return smallest[1] if sides == {"train"} else largest


def _text_hashes(config: DataConfig, sources: Iterable[Source]) -> Iterator[str]:
    options, safe = ReadOptions.of(config), safe_places(get_tokenizer(config.tokenizer))
    for source in sources:
        if source.kind == "text":
            facts = facts_of_range(source, safe, options)
            if not facts.left_out:
                yield facts.sha256
            continue
        for record in read_records(source, options, LeftOut()):
            yield hashlib.sha256(record.text.encode()).hexdigest()
