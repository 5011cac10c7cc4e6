"""sample: continuations of a list of prompts, to look at."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from gptpipe import storage
from gptpipe.config import SampleConfig, Section
from gptpipe.generate import sample_once
from gptpipe.settings import settings
from gptpipe.tracking import resolve_weights
from gptpipe.wording import counted

log = logging.getLogger("gptpipe.flows")


class SampleParameters(Section):
    """Weights and prompts."""

    weights: str = Field(description="A checkpoint, Hugging Face folder, file, or models:/NAME@ALIAS")
    config: SampleConfig = Field(default_factory=SampleConfig, description="Prompts and how they are continued")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="sample")
def sample(parameters: SampleParameters) -> dict[str, Any]:
    """Continue the prompts, unless the same weights did so before."""
    out = storage.join(parameters.storage or settings().storage_url, "samples")
    found = sample_once(resolve_weights(parameters.weights), parameters.config, out=out)
    python = "" if found.python_lines is None else f", {found.python_lines:.0%} of the lines are Python"
    log.info(
        "sample: %s%s continued%s",
        "already done, " if found.already_done else "",
        counted(len(found.samples), "prompt"),
        python,
    )
    rows = [{"prompt": s.prompt, "continuation": s.continuation} for s in found.samples]
    create_table_artifact(table=rows, key="samples", description=f"Samples at step {found.step}{python}")
    return found.as_dict()
