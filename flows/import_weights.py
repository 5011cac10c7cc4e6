"""import_weights: weights of any supported layout → a checkpoint of ours."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from pydantic import Field

from flows.server import report
from flows.server.names import last_part, named
from gptpipe import storage
from gptpipe.config import Section
from gptpipe.config.settings import settings
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.registry import resolve_weights
from gptpipe.weights.adapt import import_name
from gptpipe.weights.adapt import import_weights as write_weights

log = logging.getLogger("gptpipe.flows")


class ImportParameters(Section):
    """Weights to bring in."""

    weights: str = Field(description="A Hugging Face folder, .safetensors, .pth, checkpoint, or models:/NAME@ALIAS")
    context_length: int = Field(0, ge=0, description="Another context: less cuts it, more extends it; 0 is theirs")
    tokenizer: str = Field("", description="Another tokenizer, for which embeddings are resized; empty is theirs")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="import-weights", flow_run_name=named(lambda given: f"import · {last_part(given.weights)}"))
def import_weights(parameters: ImportParameters) -> str:
    """Write the weights as a checkpoint, unless they are there; returns its URL."""
    here = settings()
    source = resolve_weights(parameters.weights, Tracking.of(here))
    to: dict[str, Any] = {"context_length": parameters.context_length, "tokenizer": parameters.tokenizer}
    out = storage.join(parameters.storage or here.storage_url, "weights", import_name(source, **to))
    checkpoint = write_weights(source, out, **to)
    log.info("import weights: %s → %s", parameters.weights, checkpoint.url)
    report.table("weights", "Imported weights", {"from": parameters.weights, "checkpoint": checkpoint.url})
    return checkpoint.url
