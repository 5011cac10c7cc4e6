"""Whether new text is of the same nature as the earlier: how much there is, how long, in which script, which words."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptpipe.config import DriftConfig
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.news import News
from gptpipe.dataset.stream import TokenStream
from gptpipe.tokenizer import Tokenizer
from gptpipe.wording import counted

_LOOKED_AT = 1_000_000  # tokens of either text: in even steps through all of it
_STRETCH = 4096  # tokens read in one step
_SHUFFLES = 20
_SEED = 20


@dataclass(frozen=True)
class Measure:
    """One number of the new text beside the earlier text's.

    Attributes:
        name: what it is. before, now: of the earlier and of the new text, as a person reads them.
        bound: what must hold. passed: whether it does.
    """

    name: str
    before: str
    now: str
    bound: str
    passed: bool


@dataclass(frozen=True)
class Drift:
    """The measures, and those beyond their bounds."""

    measures: tuple[Measure, ...]

    @property
    def reasons(self) -> str:
        """What is beyond its bound, in a line; empty where nothing is."""
        return "; ".join(
            f"{each.name} {each.now}, before {each.before} ({each.bound})" for each in self.measures if not each.passed
        )

    @property
    def table(self) -> str:
        """In Markdown."""
        rows = [
            f"| {each.name} | {each.before} | {each.now} | {each.bound} | {'yes' if each.passed else '**no**'} |"
            for each in self.measures
        ]
        return "\n".join(["| | before | now | bound | within |", "| --- | ---: | ---: | --- | --- |", *rows])


def drift(before: TokenStream, now: TokenStream, news: News, bounds: DriftConfig) -> Drift:
    """How the new documents differ from the earlier dataset's.

    Args:
        before: the earlier dataset's training text. now: the whole of today's. news: what is new in it.
    """
    own, others = now.dataset.load_tokenizer(), before.dataset.load_tokenizer()
    whole = np.array([[0, before.length]], dtype=np.int64)
    earlier, new = _sample(before, whole), _sample(now, news.stretches)
    old_size, new_size = before.bytes, now.bytes
    left = new_size / max(1, old_size)
    old_length, new_length = _length(before.dataset), news.tokens / max(1, news.documents)
    factor = max(old_length, new_length) / max(1.0, min(old_length, new_length))
    scripts = _scripts(_text(earlier, others)), _scripts(_text(new, own))
    moved, old_script, new_script = _script_change(*scripts)
    words = []
    if own.sha256 == others.sha256:  # tokens of two tokenizers do not compare
        divergence = _divergence(earlier, new, own.end_of_text, own.vocab_size)
        words.append(
            Measure(
                "divergence of token frequencies",
                "0",
                f"{divergence:.3f}",
                f"at most {bounds.max_divergence:g} nats",
                divergence <= bounds.max_divergence,
            )
        )
    return Drift(
        (
            Measure(
                "text in all",
                _bytes(old_size),
                _bytes(new_size),
                f"at least {1 - bounds.max_shrink:.0%} of before",
                left >= 1 - bounds.max_shrink,
            ),
            Measure(
                "mean length of a document",
                counted(round(old_length), "token"),
                counted(round(new_length), "token"),
                f"within a factor of {bounds.max_length_factor:g}",
                factor <= bounds.max_length_factor,
            ),
            Measure(
                "script of its letters",
                old_script,
                f"{new_script}, {moved:.0%} other",
                f"at most {bounds.max_script_change:.0%} other",
                moved <= bounds.max_script_change,
            ),
            *words,
        )
    )


def _length(dataset: Dataset) -> float:
    return dataset.total("tokens", "train") / max(1, dataset.total("documents", "train"))


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def _sample(stream: TokenStream, stretches: np.ndarray) -> list[np.ndarray]:
    """Pieces of a stream within these stretches, in even steps, of `_LOOKED_AT` tokens together or all there are."""
    cuts = [
        (place, min(place + _STRETCH, end))
        for begin, end in stretches.tolist()
        for place in range(begin, end, _STRETCH)
    ]
    most = max(1, _LOOKED_AT // _STRETCH)
    if len(cuts) > most:
        cuts = [cuts[number * len(cuts) // most] for number in range(most)]
    return [stream.read(begin, end).astype(np.int64) for begin, end in cuts]


def _text(pieces: Sequence[np.ndarray], tokenizer: Tokenizer) -> str:
    return "".join(tokenizer.decode(piece[piece != tokenizer.end_of_text].tolist()) for piece in pieces)


def _divergence(first: Sequence[np.ndarray], second: Sequence[np.ndarray], separator: int, vocabulary: int) -> float:
    """Jensen-Shannon divergence of the token frequencies of two texts, in nats, beyond what chance would show.

    Two samples of one text differ as well, the more the shorter they are and the more a document repeats its own words.
    So documents are dealt out again between the two a few times, and the mean of what that gives is taken off.
    """
    pieces = [*first, *second]
    lengths = [len(piece) for piece in pieces]
    tokens = np.concatenate(pieces)
    ends = np.isin(np.arange(len(tokens)), np.cumsum(lengths) - 1) | (tokens == separator)
    document = np.cumsum(ends) - ends  # a piece of a document counts as one
    of_second = np.repeat(np.arange(len(pieces)) >= len(first), lengths)
    sizes = np.bincount(document)
    share = of_second.mean()
    draws = np.random.default_rng(_SEED)
    chance = []
    for _ in range(_SHUFFLES):
        order = draws.permutation(len(sizes))
        taken = np.zeros(len(sizes), dtype=bool)
        taken[order[np.cumsum(sizes[order]) <= share * len(tokens)]] = True
        chance.append(_jensen_shannon(tokens, taken[document], vocabulary))
    return max(0.0, _jensen_shannon(tokens, of_second, vocabulary) - float(np.mean(chance)))


def _jensen_shannon(tokens: np.ndarray, of_second: np.ndarray, vocabulary: int) -> float:
    """Both texts weigh alike, however long they are."""
    first = np.bincount(tokens[~of_second], minlength=vocabulary)
    second = np.bincount(tokens[of_second], minlength=vocabulary)
    p, q = (counts / max(1, counts.sum()) for counts in (first, second))
    middle = (p + q) / 2

    def against_middle(share: np.ndarray) -> float:
        there = share > 0
        return float((share[there] * np.log(share[there] / middle[there])).sum())

    return (against_middle(p) + against_middle(q)) / 2


def _scripts(text: str) -> dict[str, float]:
    """The share of its letters in each script: LATIN, CYRILLIC, CJK, …"""
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            counts[unicodedata.name(character, "UNKNOWN").split(" ")[0].split("-")[0]] += count
    total = counts.total()
    return {script: count / total for script, count in counts.items()} if total else {}


def _script_change(before: dict[str, float], now: dict[str, float]) -> tuple[float, str, str]:
    """The share of letters that would have to change their script, and the most frequent script of either text."""
    if not before or not now:
        return 0.0, "no letters", "no letters"
    moved = sum(abs(now.get(script, 0.0) - before.get(script, 0.0)) for script in {*before, *now}) / 2
    first, second = (f"{max(each, key=lambda script: each[script]).capitalize()}" for each in (before, now))
    return moved, f"{first} {before[first.upper()]:.0%}", f"{second} {now[second.upper()]:.0%}"
