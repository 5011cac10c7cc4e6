"""How sure a number is: of one model, and of two on the same documents.

Tokens of a document depend on each other, documents hardly do. A mean over tokens is so a ratio of two sums over
documents, which are few and of very different lengths. Its interval is Student's, with the variance and the degrees of
freedom of Bell and McCaffrey (2002), "Bias Reduction in Standard Errors for Linear Regression with Multi-Stage
Samples": each document's deviation is enlarged by what the document moved the mean towards itself, and a sum that hangs
on few documents has few degrees of freedom. Both need to know how a document's variance grows with its length: as its
tokens, or as their square, where they have something in common. The likeliest mixture is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

FEWEST = 10  # documents: with fewer no interval says much
_COMMON = np.array([0.0, *np.geomspace(1e-6, 1e3, 28)])  # variance in common over variance per token, all tried
_AT_ONCE = 8192  # documents whose candidates are held at once: 2 MB, however many documents there are


@dataclass(frozen=True)
class Interval:
    """A standard error and a 95 % interval, in the number's own unit."""

    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same documents, in nats per unit of text: the second's loss minus the first's.

    Attributes:
        difference: below 0 the second is better. interval: of it; None with too few documents.
        won: share of the documents on which the second's loss is lower; equal ones count half.
        documents: how many.
        unit: token, or byte where the two have different tokenizers.
        units_per_token: bytes in one of the second's tokens, where the unit is a byte; otherwise 1.
    """

    difference: float
    interval: Interval | None
    won: float
    documents: int
    unit: Literal["token", "byte"] = "token"
    units_per_token: float = 1.0

    @property
    def reversed(self) -> Comparison:
        """The first against the second."""
        interval = self.interval and Interval(self.interval.standard_error, -self.interval.high, -self.interval.low)
        return replace(self, difference=-self.difference, interval=interval, won=1 - self.won)

    @property
    def sentence(self) -> str:
        """What it says."""
        if self.difference == 0:
            return "the same loss on the same documents"
        better = f"{abs(self.difference):.4f} nats per {self.unit} {'better' if self.difference < 0 else 'worse'}"
        text = f"{better} on the same documents, better on {self.won:.0%} of {self.documents:,}"
        if self.interval is None:
            return f"{text}; too few for an interval"
        low, high = self.interval.low, self.interval.high
        sure = "" if low > 0 or high < 0 else ", which may be chance"
        return f"{text}; 95 % interval {low:+.4f} to {high:+.4f}{sure}"


def mean_interval(nats: np.ndarray, tokens: np.ndarray, certainty: float = 0.95) -> Interval | None:
    """Of the mean over tokens, Σ nats / Σ tokens; None with fewer than `FEWEST` documents.

    Args:
        nats, tokens: of each document, shape (D,).
        certainty: of the two-sided interval.
    """
    from scipy.special import stdtrit  # here: a process that scores nothing does not wait for it

    scored = tokens > 0
    nats, tokens = nats[scored], tokens[scored].astype(np.float64)
    if len(nats) < FEWEST:
        return None
    total = tokens.sum()
    share, mean = tokens / total, float(nats.sum() / total)
    deviation = nats - mean * tokens
    if not deviation.any():
        return Interval(0.0, mean, mean)
    variance = _variances(deviation, tokens, share)
    # what a deviation varies by: the document moves the mean towards itself
    seen = variance * (1 - 2 * share) + share**2
    enlarged = variance / seen
    error = float(np.sqrt((enlarged * deviation**2).sum()) / total)
    reach = error * float(stdtrit(_degrees_of_freedom(variance, seen, enlarged, share), (1 + certainty) / 2))
    return Interval(error, mean - reach, mean + reach)


def _variances(deviation: np.ndarray, tokens: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Each document's part of the variance, (D,), that sums up to 1: tokens + c · tokens², with the likeliest c."""
    squares = deviation**2 / (1 - share).clip(1e-12)
    ratios, logarithms = np.zeros(len(_COMMON)), np.zeros(len(_COMMON))
    for first in range(0, len(tokens), _AT_ONCE):  # all candidates together: few documents are the usual case
        some = tokens[first : first + _AT_ONCE]
        candidates = some * (1 + _COMMON[:, None] * some)
        ratios += (squares[first : first + _AT_ONCE] / candidates).sum(1)
        logarithms += np.log(candidates).sum(1)
    best = tokens * (1 + _COMMON[np.argmin(len(tokens) * np.log(ratios / len(tokens)) + logarithms)] * tokens)
    return np.asarray(best / best.sum())


def _degrees_of_freedom(variance: np.ndarray, seen: np.ndarray, enlarged: np.ndarray, share: np.ndarray) -> float:
    """Satterthwaite's, of the sum of enlarged squares: (tr C)² / tr C², C being the deviations' covariance.

    C has variance_i [i = j] - share_i variance_j - share_j variance_i + share_i share_j, times the roots of how much
    both are enlarged. Its trace is 1, and the sum of its squares falls apart into sums over documents.
    """
    shares, variances = (enlarged * share**2).sum(), (enlarged * variance**2).sum()
    both = (enlarged * share * variance).sum()
    everywhere = 2 * shares * variances + 2 * both**2 + shares**2 - 4 * shares * both
    own = (enlarged**2 * (seen**2 - (2 * share * variance - share**2) ** 2)).sum()
    return float(1 / (everywhere + own))


def compare(first: np.ndarray, second: np.ndarray, tokens: np.ndarray, certainty: float = 0.95) -> Comparison:
    """Two models' nats on the same documents, shape (D,).

    Args:
        tokens: targets of each document, the same for both.
        certainty: of the two-sided interval.
    """
    scored = tokens > 0
    difference = second[scored] - first[scored]
    won = float(np.where(difference < 0, 1.0, np.where(difference == 0, 0.5, 0.0)).mean())
    interval = mean_interval(difference, tokens[scored], certainty)
    return Comparison(float(difference.sum() / tokens.sum()), interval, won, int(scored.sum()))


def by_corpus(first: np.ndarray, second: np.ndarray, tokens: np.ndarray, corpus: np.ndarray) -> dict[str, Comparison]:
    """Two models' nats on the documents of each corpus, (D,) each; nothing where there is one corpus alone.

    Of k corpora each has an interval of 1 - 0.05 / k (Bonferroni).
    """
    names = np.unique(corpus[tokens > 0])
    if len(names) < 2:
        return {}
    certainty = 1 - 0.05 / len(names)
    return {
        str(name): compare(first[corpus == name], second[corpus == name], tokens[corpus == name], certainty)
        for name in names
    }
