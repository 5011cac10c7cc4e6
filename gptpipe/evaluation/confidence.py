"""How sure a number is: a bootstrap over documents (Efron 1979), of one model and of two on the same documents.

Tokens of a document depend on each other, documents hardly do; so documents are drawn, not tokens. The mean is one over
tokens, a ratio of two sums, and both are drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST = 10  # documents: with fewer a bootstrap says little
_DRAWS = 2000
_GROUPS = 4096  # more documents than this are drawn in groups, which leaves the variance of the mean as it is
_SEED = 20190214


@dataclass(frozen=True)
class Interval:
    """A standard error and a 95 % interval, in the number's own unit."""

    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same documents, in nats per token: the second's loss minus the first's.

    Attributes:
        difference: below 0 the second is better. interval: of it; None with too few documents.
        won: share of the documents on which the second's loss is lower; equal ones count half.
        documents: how many.
    """

    difference: float
    interval: Interval | None
    won: float
    documents: int

    @property
    def sentence(self) -> str:
        """What it says."""
        if self.difference == 0:
            return "the same loss on the same documents"
        better = f"{abs(self.difference):.4f} nats per token {'better' if self.difference < 0 else 'worse'}"
        text = f"{better} on the same documents, better on {self.won:.0%} of {self.documents:,}"
        if self.interval is None:
            return f"{text}; too few for an interval"
        low, high = self.interval.low, self.interval.high
        sure = "" if low > 0 or high < 0 else ", which may be chance"
        return f"{text}; difference {self.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}{sure}"


def mean_interval(nats: np.ndarray, tokens: np.ndarray) -> Interval | None:
    """Of the mean over tokens, Σ nats / Σ tokens, by a bootstrap over documents; None with fewer than `FEWEST`.

    Args:
        nats, tokens: of each document, shape (D,).
    """
    scored = tokens > 0
    nats, tokens = nats[scored], tokens[scored]
    if len(nats) < FEWEST:
        return None
    draws = np.random.default_rng(_SEED)
    if len(nats) > _GROUPS:
        group = draws.permutation(len(nats)) % _GROUPS
        nats = np.bincount(group, weights=nats, minlength=_GROUPS)
        tokens = np.bincount(group, weights=tokens, minlength=_GROUPS)
    means = np.empty(_DRAWS)
    for i in range(_DRAWS):
        times = np.bincount(draws.integers(0, len(nats), len(nats)), minlength=len(nats))
        means[i] = (times @ nats) / (times @ tokens)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(means.std(ddof=1)), float(low), float(high))


def compare(first: np.ndarray, second: np.ndarray, tokens: np.ndarray) -> Comparison:
    """Two models' nats on the same documents, shape (D,).

    Args:
        tokens: targets of each document, the same for both.
    """
    scored = tokens > 0
    difference = second[scored] - first[scored]
    won = float(np.where(difference < 0, 1.0, np.where(difference == 0, 0.5, 0.0)).mean())
    interval = mean_interval(difference, tokens[scored])
    return Comparison(float(difference.sum() / tokens.sum()), interval, won, int(scored.sum()))
