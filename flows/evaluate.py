"""evaluate: cross-entropy, perplexity and bits per byte of weights on a dataset's split."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prefect import flow
from pydantic import Field

from flows.server import endings, report
from flows.server.names import last_part, named
from gptpipe import storage
from gptpipe.config import EvaluateConfig, parse
from gptpipe.config.form import FormSection, form_of
from gptpipe.config.settings import settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.evaluation.once import evaluate_against, evaluate_once
from gptpipe.evaluation.result import Evaluation
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.registry import resolve_weights
from gptpipe.wording import side_by_side

log = logging.getLogger("gptpipe.flows")


if TYPE_CHECKING:
    EvaluateOptions = FormSection
else:
    EvaluateOptions = form_of(EvaluateConfig, "EvaluateOptions", without=("data",), key="evaluate.")


class EvaluateParameters(FormSection):
    """Weights and what they are scored on."""

    weights: str = Field(description="A checkpoint, Hugging Face folder, file, or models:/NAME@ALIAS")
    data: str = Field(description="A token dataset, or the folder of datasets (the one made last)")
    against: str = Field("", description="Weights that are scored too, on the same documents, for comparison")
    config: EvaluateOptions | None = Field(None, title="Windows, split and limits", description="How they are scored")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(
    name="evaluate",
    flow_run_name=named(lambda given: f"evaluate · {last_part(given.weights)}"),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def evaluate(parameters: EvaluateParameters) -> Evaluation:
    """Score weights, unless the same weights were scored on the same data before."""
    here = settings()
    out = storage.join(parameters.storage or here.storage_url, "evaluations")
    given = parameters.config.model_dump(mode="json", exclude_none=True) if parameters.config else {}
    config: EvaluateConfig = parse(EvaluateConfig, given, where="config")
    data, cache, tracking = parameters.data, TokenCache(limit=here.cache_bytes), Tracking.of(here)
    weights = resolve_weights(parameters.weights, tracking)
    if parameters.against:
        other = resolve_weights(parameters.against, tracking)
        evaluation = evaluate_against(weights, other, data=data, config=config, out=out, cache=cache)
    else:
        evaluation = evaluate_once(weights, data=data, config=config, out=out, cache=cache)
    log.info("evaluate: %s%s", "already done, " if evaluation.already_done else "", evaluation.sentence)
    columns, text = {"these weights": evaluation.numbers}, evaluation.sentence
    if evaluation.against is not None:
        before, comparison = evaluation.against.evaluation, evaluation.against.comparison
        log.info("evaluate: against %s: %s", before.weights, comparison.sentence)
        columns["before"] = before.numbers
        text += f". Against {before.weights}: {comparison.sentence}"
    text += (
        f"\n\nScored: {evaluation.scored}, {evaluation.windows}, {evaluation.precision}; {evaluation.tokens:,} tokens"
    )
    report.page(
        "evaluation", f"{text}\n\n{side_by_side(columns)}\n\nPage: `{evaluation.page}`", description=evaluation.sentence
    )
    return evaluation
