"""Loss as a law of size and tokens, fitted to runs: L = E + A / N^α + B / D^β, and what to train next by it.

The third way of Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models": Huber's loss on the logarithms,
least squares from many starts. N are the FLOPs of a token by six, so that 6 N D is exactly what a run has cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from gptpipe.errors import UserError
from gptpipe.wording import counted

FEWEST = 6  # runs: one more than the law has numbers
_DELTA = 1e-3  # of Huber's loss
# of ln A, ln B, ln E, α, β
_STARTS = ((2.0, 8.0), (2.0, 8.0), (-1.0, 0.5), (0.2, 0.6), (0.2, 0.6))
_BOUNDS = ((-10, -10, -10, 0.01, 0.01), (30, 30, 4, 3, 3))
_RESAMPLES = 200
# times the largest run's FLOPs beyond which a prediction is to be doubted, and beyond which it is a guess
_BEYOND, _FAR = 3.0, 100.0
_LOOSE = 0.1  # nats per token: a law that is further off on its own runs says little of others


@dataclass(frozen=True)
class Point:
    """A finished run: N, D and the loss in nats per token; its name, and FLOP/s of all its devices."""

    name: str
    parameters: float
    tokens: float
    loss: float
    flops_per_second: float

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class Law:
    """L = irreducible + a / N^alpha + b / D^beta."""

    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token."""
        return float(self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best(self, flops: float) -> tuple[float, float]:
        """N and D of the least loss for this many FLOPs, 6 N D."""
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        share = flops / 6
        parameters = scale * share ** (self.beta / (self.alpha + self.beta))
        return parameters, share / parameters


@dataclass(frozen=True)
class Range:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def shown(self, form: str = ".3g") -> str:
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Advice:
    """What to train for a budget: FLOPs, N, D, the loss that it reaches, tokens per parameter."""

    flops: float
    parameters: Range
    tokens: Range
    loss: Range
    beyond: float  # times the FLOPs of the largest run

    @property
    def sentence(self) -> str:
        """What to train, and how sure that is."""
        text = (
            f"for {self.flops:.3g} FLOPs: N = {self.parameters.shown()}, {self.tokens.shown()} tokens; "
            f"loss {self.loss.shown('.3f')} nats per token"
        )
        if self.beyond > _BEYOND:
            text += f"; {self.beyond:,.0f} times the largest run: "
            text += "a guess" if self.beyond > _FAR else "no run shows that the law holds there"
        return text


@dataclass(frozen=True)
class Fit:
    """A law, how sure its numbers are, and the runs that it was fitted to.

    Attributes:
        ranges: of the law's numbers by name. error: root of the mean squared difference, in nats per token.
        laws: of the resampled runs.
    """

    law: Law
    ranges: dict[str, Range]
    error: float
    points: list[Point]
    laws: list[Law]

    def advice(self, flops: float) -> Advice:
        """What to train with this many FLOPs."""
        chosen = self.law.best(flops)
        others = [law.best(flops) for law in self.laws]
        losses = [law.loss(*best) for law, best in zip(self.laws, others, strict=True)]
        return Advice(
            flops,
            _range(chosen[0], [each[0] for each in others]),
            _range(chosen[1], [each[1] for each in others]),
            _range(self.law.loss(*chosen), losses),
            flops / max(point.flops for point in self.points),
        )

    @property
    def flops_per_second(self) -> float:
        """What the runs had, the median of them."""
        return float(np.median([point.flops_per_second for point in self.points]))

    @property
    def sentence(self) -> str:
        """The law in a line, without its intervals."""
        law = self.law
        return (
            f"L = {law.irreducible:.3f} + {law.a:.4g} / N^{law.alpha:.3f} + {law.b:.4g} / D^{law.beta:.3f}, "
            f"from {counted(len(self.points), 'run')}, off by {self.error:.4f} nats per token"
        )

    @property
    def caution(self) -> str:
        """Why the law is not to be trusted, and what to do; empty where it fits."""
        if self.error <= _LOOSE:
            return ""
        return (
            f"the law is off by {self.error:.2f} nats per token on its own runs: train more, and longer ones, before "
            "you go by it"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "caution": self.caution,
            "law": asdict(self.law),
            "intervals": {name: asdict(each) for name, each in self.ranges.items()},
            "error": self.error,
            "runs": [asdict(point) for point in self.points],
        }


def fit(points: Sequence[Point], seed: int = 0) -> Fit:
    """The law of these runs; intervals from runs drawn again.

    Raises:
        UserError: too few runs, or too few different sizes or numbers of tokens, to tell anything.
    """
    points = sorted(points, key=lambda point: point.flops)
    _check(points)
    sizes, tokens, losses = (
        np.log([getattr(point, name) for point in points]) for name in ("parameters", "tokens", "loss")
    )
    best = min(
        (_descend(np.array(start), sizes, tokens, losses) for start in product(*_STARTS)), key=lambda each: each[1]
    )
    law = _law(best[0])
    draws, laws = np.random.default_rng(seed), list[Law]()
    while len(laws) < _RESAMPLES:
        chosen = draws.integers(len(points), size=len(points))
        if len({points[i].parameters for i in chosen}) < 2 or len({points[i].tokens for i in chosen}) < 2:
            continue
        laws.append(_law(_descend(best[0], sizes[chosen], tokens[chosen], losses[chosen])[0]))
    error = math.sqrt(np.mean([(law.loss(point.parameters, point.tokens) - point.loss) ** 2 for point in points]))
    ranges = {
        name: _range(getattr(law, name), [getattr(each, name) for each in laws])
        for name in ("irreducible", "a", "b", "alpha", "beta")
    }
    return Fit(law, ranges, error, points, laws)


def _check(points: Sequence[Point]) -> None:
    hint = "train more: other sizes (model.n_layer, model.n_embd) and other train.steps"
    if len(points) < FEWEST:
        raise UserError(f"{counted(len(points), 'run')}, a law needs {FEWEST}", where="fit-scaling", hint=hint)
    for name, what in (("parameters", "sizes of model"), ("tokens", "numbers of tokens")):
        different = len({round(math.log(getattr(point, name)), 3) for point in points})
        if different < 3:
            raise UserError(f"{different} different {what}, a law needs 3", where="fit-scaling", hint=hint)


def _descend(start: np.ndarray, sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """The law's numbers (ln A, ln B, ln E, α, β) of least loss that are reached from a start, and that loss."""
    from scipy.optimize import least_squares  # here: a process that fits no law does not wait for it

    def terms_of(numbers: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = numbers
        return np.stack([a - alpha * sizes, b - beta * tokens, np.full_like(sizes, e)])

    def off(numbers: np.ndarray) -> np.ndarray:
        return np.asarray(np.logaddexp.reduce(terms_of(numbers)) - losses)

    def slopes(numbers: np.ndarray) -> np.ndarray:
        terms = terms_of(numbers)
        first, second, third = np.exp(terms - np.logaddexp.reduce(terms))
        return np.stack([first, second, third, -first * sizes, -second * tokens], axis=1)

    found = least_squares(off, start, jac=slopes, bounds=_BOUNDS, loss="huber", f_scale=_DELTA, max_nfev=200)
    return found.x, float(found.cost)


def _law(numbers: np.ndarray) -> Law:
    a, b, e, alpha, beta = numbers.tolist()
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def _range(value: float, others: Sequence[float]) -> Range:
    low, high = np.quantile(others, [0.025, 0.975])
    return Range(value, float(low), float(high))
