"""evaluate: cross-entropy, perplexity and bits per byte of weights on a dataset's split."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from pydantic import Field

from flows import report
from gptpipe import storage
from gptpipe.config import EvaluateConfig, Section
from gptpipe.evaluate import evaluate_once
from gptpipe.settings import settings
from gptpipe.tracking import resolve_weights

log = logging.getLogger("gptpipe.flows")


class EvaluateParameters(Section):
    """Weights and what they are scored on."""

    weights: str = Field(description="A checkpoint, Hugging Face folder, file, or models:/NAME@ALIAS")
    data: str = Field(description="URL of a token dataset")
    config: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Split and limits")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="evaluate")
def evaluate(parameters: EvaluateParameters) -> dict[str, Any]:
    """Score weights, unless the same weights were scored on the same data before."""
    out = storage.join(parameters.storage or settings().storage_url, "evaluations")
    data = parameters.config.data or parameters.data
    found = evaluate_once(resolve_weights(parameters.weights), data=data, config=parameters.config, out=out)
    log.info("evaluate: %s%s", "already done, " if found.already_done else "", found.sentence)
    report.table("evaluation", found.sentence, found.as_dict())
    return found.as_dict()
