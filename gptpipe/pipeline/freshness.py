"""Whether the champion still does as well on text that came after it as on the text that it was judged by."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from gptpipe.config import PipelineConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.news import news_since
from gptpipe.errors import UserError
from gptpipe.evaluation.confidence import FEWEST, Interval, mean_interval
from gptpipe.evaluation.once import documents_of, evaluate_once
from gptpipe.tracking.registry import Champion
from gptpipe.wording import counted


@dataclass(frozen=True)
class Loss:
    """The champion's loss on a part of the text.

    Attributes:
        nats: per token. interval: of it; None with too few documents. documents, tokens: how many were scored.
    """

    nats: float
    interval: Interval | None
    documents: int
    tokens: int


@dataclass(frozen=True)
class Freshness:
    """The champion on new and on old text of the validation split.

    Attributes:
        version: its number. dataset: URL of today's. evaluation: URL of the page with the loss in the text.
        new, old: the two parts. bound: most that new text may cost more, nats per token.
        drifted: whether it surely costs more than that; None where too few documents are new to tell.
    """

    version: str
    dataset: str
    evaluation: str
    new: Loss
    old: Loss
    bound: float
    drifted: bool | None

    @property
    def sentence(self) -> str:
        """What it says."""
        if self.drifted is None:
            few = f"{counted(self.new.documents, 'new document')} and {self.old.documents} old"
            return f"champion version {self.version}: {few} held out, of at least {FEWEST} each, too few to tell"
        low, high = difference_interval(self.new, self.old)
        told = (
            f"{self.new.nats - self.old.nats:+.4f} nats per token on new text against old ({low:+.4f} to {high:+.4f})"
        )
        verdict = "has drifted" if self.drifted else "has not drifted"
        return f"champion version {self.version} {verdict}: {told}, at most {self.bound:g} is allowed"

    @property
    def table(self) -> str:
        """In Markdown."""
        rows = ["| text | nats per token | 95 % interval | documents | tokens |", "| --- | ---: | --- | ---: | ---: |"]
        for name, loss in (("new since its dataset", self.new), ("old", self.old)):
            sure = f"{loss.interval.low:.4f} to {loss.interval.high:.4f}" if loss.interval else "too few documents"
            rows.append(f"| {name} | {loss.nats:.4f} | {sure} | {loss.documents:,} | {loss.tokens:,} |")
        return "\n".join(rows)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def difference_interval(new: Loss, old: Loss) -> tuple[float, float]:
    """The 95 % interval of the difference of two losses on different documents, which do not depend on each other."""
    if new.interval is None or old.interval is None:
        return -math.inf, math.inf
    reach = NormalDist().inv_cdf(0.975) * math.hypot(new.interval.standard_error, old.interval.standard_error)
    difference = new.nats - old.nats
    return difference - reach, difference + reach


def freshness(champion: Champion, dataset: str, config: PipelineConfig, out: str, cache: TokenCache) -> Freshness:
    """Score the champion on today's validation split, new and old documents apart.

    Args:
        dataset: URL of today's. out: folder where evaluations are kept.

    Raises:
        UserError: what the champion was trained on is not known or not there any more, or it cannot be scored.
    """
    if not champion.dataset:
        hint = "register models with `gptpipe run`"
        raise UserError("nobody knows what it was trained on", where=f"version {champion.version}", hint=hint)
    names = news_since(open_dataset(champion.dataset), open_dataset(dataset), "validation").names
    options = config.evaluate.model_copy(update={"split": "validation", "max_tokens": 0})
    evaluation = evaluate_once(champion.checkpoint, data=dataset, config=options, out=out, cache=cache)
    rows = documents_of(evaluation)
    nats, tokens = rows["nats"].to_numpy(), rows["tokens"].to_numpy()
    is_new = np.array([name in names for name in rows["document"].to_pylist()], dtype=bool)
    new, old = (_loss(nats[mask], tokens[mask]) for mask in (is_new, ~is_new))
    drifted = None
    if new.interval is not None and old.interval is not None:
        drifted = difference_interval(new, old)[0] > config.drift.max_worsening
    bound = config.drift.max_worsening
    return Freshness(champion.version, dataset, evaluation.page, new, old, bound, drifted)


def _loss(nats: np.ndarray, tokens: np.ndarray) -> Loss:
    total = int(tokens.sum())
    mean = float(nats.sum() / total) if total else 0.0
    return Loss(mean, mean_interval(nats, tokens), int((tokens > 0).sum()), total)
