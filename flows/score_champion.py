"""score-champion: the model that serves, scored on text that came after it; says when it has drifted."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.states import Completed

from flows.retrain import RetrainParameters, config_of
from flows.server import endings, report
from flows.server.names import named
from flows.tokenize import TokenizeParameters, tokenize
from gptpipe import storage
from gptpipe.config.names import texts
from gptpipe.config.settings import settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import UserError
from gptpipe.pipeline.freshness import freshness
from gptpipe.tracking.announcement import post
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.registry import champion, keep_freshness
from gptpipe.weights.find import read_weights

log = logging.getLogger("gptpipe.flows")
DRIFTED = "gptpipe.champion.drifted"


@flow(
    name="score-champion",
    flow_run_name=named(lambda given: f"champion · {texts(config_of(given).data.corpus)}"),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def score_champion(parameters: RetrainParameters) -> Any:
    """Tokenize today's text and compare the champion's loss on what is new with its loss on what is old."""
    config, here = config_of(parameters), settings()
    tracking, name = Tracking.of(here), config.promote.model_name
    serving = champion(config, tracking)
    if serving is None:
        hint = "retrain first"
        raise UserError(f"no version is {config.promote.alias}", where=name, hint=hint)
    tokenizer = config.data.tokenizer or read_weights(serving.checkpoint).tokenizer
    data = config.data.model_copy(update={"tokenizer": tokenizer})
    dataset = tokenize(TokenizeParameters(data=data)).dataset
    out, cache = storage.join(here.storage_url, "evaluations"), TokenCache(limit=here.cache_bytes)
    fresh = freshness(serving, dataset, config, out, cache)
    log.info("score-champion: %s", fresh.sentence)
    keep_freshness(tracking, name, serving.version, fresh.sentence)
    text = f"{fresh.sentence}\n\n{fresh.table}\n\nPage: `{fresh.evaluation}`"
    report.page("champion", text, description=fresh.sentence)
    if fresh.drifted:
        payload = {"text": fresh.sentence, "model": name, **fresh.as_dict()}
        report.emit(name, DRIFTED, payload)
        if here.webhook_url:
            post(here.webhook_url, {"event": DRIFTED, **payload})
    return Completed(message=fresh.sentence, name="Drifted" if fresh.drifted else None, data=fresh)
