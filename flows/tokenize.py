"""tokenize: corpora → Parquet token shards, mapped over shards as Prefect tasks."""

from __future__ import annotations

import logging

from prefect import flow
from pydantic import Field

from flows.server import report
from flows.server.engines import engine, task_runner
from flows.server.names import named
from gptpipe import storage
from gptpipe.config import DataConfig, Section
from gptpipe.config.names import texts
from gptpipe.config.settings import settings
from gptpipe.corpus.build import TokenizeResult
from gptpipe.corpus.build import tokenize as make_dataset
from gptpipe.dataset.inspect import describe, inspect
from gptpipe.tracking.plots import length_histogram
from gptpipe.wording import counted, fenced

log = logging.getLogger("gptpipe.flows")


class TokenizeParameters(Section):
    """From text to token shards."""

    data: DataConfig = Field(default_factory=DataConfig, description="The texts and how they are cut up")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(
    name="tokenize",
    flow_run_name=named(lambda given: f"tokenize · {texts(given.data.corpus)}"),
    task_runner=task_runner(),
)
def tokenize(parameters: TokenizeParameters) -> TokenizeResult:
    """Make the dataset of these texts, unless it is there."""
    out = storage.join(parameters.storage or settings().storage_url, "datasets")
    if (runner := settings().task_runner) != "processes":
        log.info("tokenize: on %s, %s", runner, settings().task_runner_address or "started on this machine")
    result = make_dataset(parameters.data, out, engine(parameters.data.workers))
    if result.already_done:
        log.info("tokenize: already done, %s", result.dataset)
    else:
        log.info(
            "tokenize: %s, %s in %s, %.1f MB/s → %s",
            counted(result.documents, "document"),
            counted(result.tokens, "token"),
            counted(result.shards, "shard"),
            result.megabytes_per_second,
            result.dataset,
        )
    report.table("dataset", "The token dataset", result.as_dict())
    if not result.already_done:
        inspection = inspect(result.dataset)
        picture = length_histogram(
            inspection.histogram, f"{counted(inspection.documents, 'document')} of {inspection.id}"
        )
        report.page("dataset-at-a-glance", fenced(describe(inspection)), picture, description="What the dataset holds")
    return result
