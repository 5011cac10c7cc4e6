"""Promote or keep: a pure function of how the new model compares with the champion on the same text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gptpipe.config import PromoteConfig
from gptpipe.evaluation.confidence import FEWEST, Comparison
from gptpipe.wording import counted


@dataclass(frozen=True)
class Check:
    """One condition of the decision, as a person reads it.

    Attributes:
        needed: what must hold. measured: what does. passed: whether that is enough.
        otherwise: what it would take to come out the other way; empty where nothing can be said.
    """

    needed: str
    measured: str
    passed: bool
    otherwise: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether the new model becomes champion, why, in one sentence, and the conditions that were looked at."""

    promote: bool
    reason: str
    checks: tuple[Check, ...] = ()

    @property
    def table(self) -> str:
        """The conditions in Markdown; empty where there was nothing to compare with."""
        if not self.checks:
            return ""
        rows = [
            f"| {'yes' if each.passed else '**no**'} | {each.needed} | {each.measured} | {each.otherwise} |"
            for each in self.checks
        ]
        head = ["| holds | needed to become champion | measured | it would be otherwise |", "| --- | --- | --- | --- |"]
        return "\n".join([*head, *rows])


NO_CHAMPION = Decision(True, "there was no champion")
ALREADY = Decision(True, "it is the champion already")


def decide(comparison: Comparison, rules: PromoteConfig, corpora: Mapping[str, Comparison] | None = None) -> Decision:
    """Promote when the new model is surely better, by more than is asked for, and no corpus surely gets worse by much.

    Surely is with 95 % in both directions: noise is promoted in 2.5 of 100 nights. Of several corpora each is held
    against an interval so much wider that all together are wrong as seldom as one.

    Args:
        comparison: of the new model's loss with the champion's, on the same documents.
        corpora: the same for each corpus, where there are several.
    """
    by_corpus = dict(sorted((corpora or {}).items()))
    checks = (_gain(comparison, rules), *(_loss(name, each, rules) for name, each in by_corpus.items()))
    if comparison.interval is None:
        few = f"{comparison.documents} of at least {FEWEST} documents"
        return Decision(False, f"too few documents to be sure ({few}): {comparison.sentence}", checks)
    if not checks[0].passed:
        least = f" by {rules.min_improvement:g} nats per token" if rules.min_improvement else ""
        return Decision(False, f"not surely better{least}: {comparison.sentence}", checks)
    worse = [name for name, check in zip(by_corpus, checks[1:], strict=True) if not check.passed]
    if worse:
        names = ", ".join(f"{name} ({by_corpus[name].difference:+.4f})" for name in worse)
        reason = f"surely worse by over {rules.max_regression:g} nats per token on {names}: {comparison.sentence}"
        return Decision(False, reason, checks)
    return Decision(True, f"better: {comparison.sentence}", checks)


def _gain(comparison: Comparison, rules: PromoteConfig) -> Check:
    least, interval = rules.min_improvement, comparison.interval
    needed = f"better by over {least:g} nats per token, the whole interval" if least else "better, the whole interval"
    if interval is None:
        need = f"with at least {FEWEST} documents"
        return Check(needed, counted(comparison.documents, "document"), False, need)
    measured = f"{comparison.difference:+.4f}, {interval.low:+.4f} to {interval.high:+.4f}"
    passed = interval.high < -least
    if passed:
        return Check(needed, measured, True, f"with promote.min_improvement of {-interval.high:.4f} or more")
    return Check(needed, measured, False, _what_a_gain_takes(comparison, least))


def _what_a_gain_takes(comparison: Comparison, least: float) -> str:
    """So large a gain on as many documents, or so many documents with this gain."""
    assert comparison.interval is not None
    reach = comparison.interval.high - comparison.difference
    if not math.isfinite(reach) or reach <= 0:
        return ""
    larger = f"with a difference below {-(least + reach):+.4f}"
    beyond = -comparison.difference - least
    if beyond <= 0:
        return larger
    return f"{larger}, or this one on about {math.ceil(comparison.documents * (reach / beyond) ** 2):,} documents"


def _loss(name: str, comparison: Comparison, rules: PromoteConfig) -> Check:
    most, interval = rules.max_regression, comparison.interval
    needed = f"{name}: not surely worse by over {most:g} nats per token"
    if interval is None:
        few = f"{comparison.difference:+.4f} on {counted(comparison.documents, 'document')}, too few to be sure"
        return Check(needed, few, True)
    measured = f"{comparison.difference:+.4f}, {interval.low:+.4f} to {interval.high:+.4f}"
    passed = not interval.low > most
    if not passed:
        return Check(needed, measured, False, f"with promote.max_regression of {interval.low:.4f} or more")
    takes = f"with promote.max_regression below {interval.low:.4f}" if interval.low > 0 else ""
    return Check(needed, measured, True, takes)


def not_comparable(reason: str) -> Decision:
    """The champion cannot be scored on this text: it stays, and a person has to look."""
    return Decision(False, f"not comparable: {reason}")
