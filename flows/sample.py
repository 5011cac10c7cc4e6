"""sample: continuations of a list of prompts, to look at."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from flows.server.names import last_part, named
from gptpipe import storage
from gptpipe.config import SampleConfig, Section
from gptpipe.config.settings import settings
from gptpipe.generation.generate import Samples, sample_once
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.registry import resolve_weights
from gptpipe.weights.checkpoint import list_checkpoints
from gptpipe.wording import counted, unlinked

log = logging.getLogger("gptpipe.flows")


class SampleParameters(Section):
    """Weights and prompts."""

    weights: str = Field(description="A checkpoint, Hugging Face folder, file, or models:/NAME@ALIAS")
    config: SampleConfig = Field(default_factory=SampleConfig, description="Prompts and how they are continued")
    every: bool = Field(False, description="The other checkpoints beside it too, to follow a prompt through training")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="sample", flow_run_name=named(lambda given: f"sample · {last_part(given.weights)}"))
def sample(parameters: SampleParameters) -> list[Samples]:
    """Continue the prompts, unless the same weights did so before; the samples of each checkpoint, by step."""
    here = settings()
    out = storage.join(parameters.storage or here.storage_url, "samples")
    weights = resolve_weights(parameters.weights, Tracking.of(here))
    own = sample_once(weights, parameters.config, out=out)
    python = "" if own.python_lines is None else f", {own.python_lines:.0%} of the lines are Python"
    others = list_checkpoints(weights.rstrip("/").rpartition("/")[0]) if parameters.every else []
    through = [sample_once(each.url, parameters.config, out=out) for each in others if each.step != own.step]
    through = sorted([own, *through], key=lambda each: each.step)
    log.info(
        "sample: %s%s continued%s%s",
        "already done, " if all(each.already_done for each in through) else "",
        counted(len(own.samples), "prompt"),
        f" by {counted(len(through), 'checkpoint')}" if len(through) > 1 else "",
        python,
    )
    rows = [
        {"prompt": unlinked(sample.prompt), "step": each.step, "continuation": unlinked(sample.continuation)}
        for number in range(len(own.samples))  # a prompt's continuations stand below one another
        for each in through
        for sample in [each.samples[number]]
    ]
    create_table_artifact(table=rows, key="samples", description=f"Samples at step {own.step}{python}")
    return through
