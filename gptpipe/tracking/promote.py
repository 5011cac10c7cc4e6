"""Promote or keep: a pure function of how the new model compares with the champion, and of what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gptpipe.config import PromoteConfig
from gptpipe.evaluation.confidence import FEWEST, Comparison, Interval
from gptpipe.evaluation.copies import Copy
from gptpipe.generation.degenerate import degenerate_share
from gptpipe.generation.generate import Sample
from gptpipe.wording import cell, counted

_SHOWN = 60  # characters of a copied text


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
    """Whether the new model becomes champion, and why.

    Attributes:
        reason: in one sentence. checks: the conditions that were looked at.
        comparison: with the champion, on all of the text; None where there was none.
    """

    promote: bool
    reason: str
    checks: tuple[Check, ...] = ()
    comparison: Comparison | None = None

    @property
    def table(self) -> str:
        """The conditions in Markdown; empty where there was nothing to compare with."""
        if not self.checks:
            return ""
        rows = [
            f"| {'yes' if each.passed else '**no**'} | {cell(each.measured)} | {each.needed} | {each.otherwise} |"
            for each in self.checks
        ]
        # Prefect cuts a wide table off at its right: what was measured comes first
        head = ["| holds | measured | needed to become champion | it would be otherwise |", "| --- | --- | --- | --- |"]
        return "\n".join([*head, *rows])

    def settled(self, promote: bool, reason: str) -> Decision:
        """The same conditions, decided by a person."""
        return replace(self, promote=promote, reason=reason)


ALREADY = Decision(True, "it is the champion already")


def decide(
    comparison: Comparison | None,
    rules: PromoteConfig,
    corpora: Mapping[str, Comparison] | None = None,
    *,
    ages: Mapping[str, Comparison] | None = None,
    samples: Sequence[Sample] = (),
    copies: Sequence[Copy] = (),
) -> Decision:
    """Promote when the new model is surely better, by more than is asked for, no corpus surely gets worse by much, and
    its samples are neither degenerate nor copied.

    Surely is with 95 % in both directions: noise is promoted in 2.5 of 100 nights. Of several corpora each is held
    against an interval so much wider that all together are wrong as seldom as one.

    Args:
        comparison: of the new model's loss with the champion's, on the same documents; None where there is no champion.
        corpora: the same for each corpus, where there are several.
        ages: the same for text that is new since the champion's dataset and for old text, where it is told apart.
        samples: what the new model says. copies: what of it stands in its training text.
    """
    said = _samples(samples, copies, rules)
    failed = "; ".join(check.measured for check in said if not check.passed)
    if comparison is None:
        if failed:
            return Decision(False, f"there is no champion, but this cannot be one: {failed}", said)
        return Decision(True, "there was no champion", said)
    by_corpus = {**dict(sorted((corpora or {}).items())), **(ages or {})}
    checks = (_gain(comparison, rules), *(_loss(name, each, rules) for name, each in by_corpus.items()), *said)
    if comparison.interval is None:
        few = f"{comparison.documents} of at least {FEWEST} documents"
        return Decision(False, f"too few documents to be sure ({few}): {comparison.sentence}", checks, comparison)
    if comparison.interval.low > 0:
        return Decision(False, f"surely worse: {comparison.sentence}", checks, comparison)
    if not checks[0].passed:
        least = f" by {rules.min_improvement:g} nats per token" if rules.min_improvement else ""
        return Decision(False, f"not surely better{least}: {comparison.sentence}", checks, comparison)
    worse = [name for name, check in zip(by_corpus, checks[1 : 1 + len(by_corpus)], strict=True) if not check.passed]
    if worse:
        names = ", ".join(f"{name} ({by_corpus[name].difference:+.4f})" for name in worse)
        reason = f"surely worse by over {rules.max_regression:g} nats per token on {names}: {comparison.sentence}"
        return Decision(False, reason, checks, comparison)
    if failed:
        return Decision(False, f"{failed}, though {comparison.sentence}", checks, comparison)
    return Decision(True, f"better: {comparison.sentence}", checks, comparison)


def _gain(comparison: Comparison, rules: PromoteConfig) -> Check:
    least, interval = rules.min_improvement / comparison.units_per_token, comparison.interval
    needed = f"better by over {_bound(rules.min_improvement, comparison)}, the whole interval"
    if not least:
        needed = "better, the whole interval"
    if interval is None:
        need = f"with at least {FEWEST} documents"
        return Check(needed, counted(comparison.documents, "document"), False, need)
    measured = _measured(comparison, interval)
    if interval.high < -least:
        limit = -interval.high * comparison.units_per_token
        return Check(needed, measured, True, f"with promote.min_improvement of {limit:.4f} or more")
    return Check(needed, measured, False, _what_a_gain_takes(comparison, least))


def _what_a_gain_takes(comparison: Comparison, least: float) -> str:
    """What a sure gain would have taken: a larger difference on as many documents, or this one on more."""
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
    most, interval = rules.max_regression / comparison.units_per_token, comparison.interval
    needed = f"{name}: not surely worse by over {_bound(rules.max_regression, comparison)}"
    if interval is None:
        few = f"{comparison.difference:+.4f} on {counted(comparison.documents, 'document')}, too few to be sure"
        return Check(needed, few, True)
    measured = _measured(comparison, interval)
    limit = interval.low * comparison.units_per_token
    if interval.low > most:
        return Check(needed, measured, False, f"with promote.max_regression of {limit:.4f} or more")
    return Check(needed, measured, True, f"with promote.max_regression below {limit:.4f}" if limit > 0 else "")


def _bound(per_token: float, comparison: Comparison) -> str:
    """A bound as it was set, and in the comparison's own unit where that is another."""
    other = f" ({per_token / comparison.units_per_token:.4g} per byte)" if comparison.unit == "byte" else ""
    return f"{per_token:g} nats per token{other}"


def _measured(comparison: Comparison, interval: Interval) -> str:
    unit = " per byte" if comparison.unit == "byte" else ""
    return f"{comparison.difference:+.4f}{unit}, {interval.low:+.4f} to {interval.high:+.4f}"


def _samples(samples: Sequence[Sample], copies: Sequence[Copy], rules: PromoteConfig) -> tuple[Check, ...]:
    checks = []
    if (share := degenerate_share(samples)) is not None:
        needed = f"at most {rules.max_degenerate:.0%} of the samples blank or the same words over and over"
        passed = share <= rules.max_degenerate
        limit = f"with promote.max_degenerate of {share:g} or more" if not passed else ""
        if passed and share:
            limit = f"with promote.max_degenerate below {share:g}"
        checks.append(Check(needed, f"{share:.0%} of the samples are degenerate", passed, limit))
    if rules.max_copied and samples:
        needed = f"no more than {counted(rules.max_copied, 'token')} of training text word for word in a sample"
        longest = max(copies, key=lambda copy: copy.tokens, default=None)
        if longest is None or longest.tokens <= rules.max_copied:
            checks.append(Check(needed, f"none in {counted(len(samples), 'sample')}", True))
        else:
            begin = " ".join(longest.text.split())[:_SHOWN]
            measured = f"{counted(longest.tokens, 'token')} of {longest.document} come back word for word: “{begin}…”"
            limit = f"with promote.max_copied of {longest.tokens} or more"
            checks.append(Check(needed, measured, False, limit))
    return tuple(checks)


def not_comparable(reason: str) -> Decision:
    """The champion cannot be scored on this text: it stays, and a person has to look."""
    return Decision(False, f"not comparable: {reason}")
