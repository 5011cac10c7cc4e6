"""What a training that goes on from the champion would learn: what is new since the champion's own dataset."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gptpipe.config import DriftConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.drift import Drift, drift
from gptpipe.dataset.news import News, news_since
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.wording import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Since:
    """Today's dataset beside the champion's.

    Attributes:
        earlier: the champion's dataset. news: what is new in the training split.
        drift: how the new text differs; None where nothing is new.
        validation: `corpus:document id` of the new documents in the validation split.
    """

    earlier: Dataset
    news: News
    drift: Drift | None
    validation: frozenset[str]

    @property
    def sentence(self) -> str:
        """How much is new, and how much is gone."""
        gone = f", {counted(self.news.gone, 'document')} gone" if self.news.gone else ""
        if not self.news.documents:
            return f"nothing is new since dataset {self.earlier.id}, which the champion was trained on{gone}"
        new = f"{counted(self.news.documents, 'document')} of {counted(self.news.tokens, 'token')}"
        return f"{new} new since dataset {self.earlier.id}, which the champion was trained on{gone}"


def since(earlier: str, dataset: str, bounds: DriftConfig, cache: TokenCache) -> Since | None:
    """What is new; None, with a warning, where the champion's dataset is not there any more.

    Args:
        earlier: URL of the champion's dataset. dataset: URL of today's.
    """
    now = open_dataset(dataset)
    try:
        before = open_dataset(earlier)
        news = news_since(before, now, "train")
        streams = TokenStream(before, "train", cache), TokenStream(now, "train", cache)
        measured = drift(*streams, news, bounds) if news.documents else None
        held_out = bool(before.total("shards", "validation") and now.total("shards", "validation"))
        validation = news_since(before, now, "validation").names if held_out else frozenset[str]()
    except UserError as error:
        log.warning("what is new since the champion's dataset cannot be told: %s; all text is drawn alike", error)
        return None
    return Since(before, news, measured, validation)


def check_nature(since: Since) -> None:
    """Stop before anything is trained.

    Raises:
        UserError: the text has changed its nature, or most of it is missing.
    """
    if since.drift is not None and since.drift.reasons:
        raise UserError(
            f"the text is not what the champion was trained on: {since.drift.reasons}",
            where=f"since dataset {since.earlier.id}",
            hint="look at the texts; raise the bound, drift.*, or start from scratch",
        )
