"""import_weights: weights of any supported layout → a checkpoint of ours."""

from __future__ import annotations

import logging

from prefect import flow
from pydantic import Field

from flows import report
from gptpipe import storage
from gptpipe.config import Section, digest
from gptpipe.pretrained import import_weights as write_weights
from gptpipe.settings import settings
from gptpipe.tracking import resolve_weights

log = logging.getLogger("gptpipe.flows")


class ImportParameters(Section):
    """Weights to bring in."""

    weights: str = Field(description="A Hugging Face folder, .safetensors, .pth, checkpoint, or models:/NAME@ALIAS")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="import-weights")
def import_weights(parameters: ImportParameters) -> str:
    """Write the weights as a checkpoint, unless they are there; returns its URL."""
    source = resolve_weights(parameters.weights)
    out = storage.join(parameters.storage or settings().storage_url, "weights", digest(storage.normalize(source))[:12])
    found = write_weights(source, out)
    log.info("import weights: %s → %s", parameters.weights, found.url)
    report.table("weights", "Imported weights", {"from": parameters.weights, "checkpoint": found.url})
    return found.url
