"""train: a GPT on a token dataset, under torchrun, followed into MLflow."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from pydantic import Field

from flows import endings, report
from flows.hosts import PrefectHosts
from gptpipe import storage
from gptpipe.config import PipelineConfig, Section
from gptpipe.settings import settings
from gptpipe.torchrun import Cancelled, Watchers
from gptpipe.tracking import train_and_track

log = logging.getLogger("gptpipe.flows")


class TrainParameters(Section):
    """A training on a dataset that exists."""

    data: str = Field(description="URL of a token dataset, or of the folder of datasets (the one made last)")
    config: PipelineConfig = Field(
        default_factory=PipelineConfig, description="Preset and settings; `data` in it is not used"
    )
    init: str = Field("", description="Checkpoint whose weights to start from; empty is random weights")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="train")
def train(parameters: TrainParameters) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint, unless this training is finished."""
    out = storage.join(parameters.storage or settings().storage_url, "trainings")
    try:
        result, link = train_and_track(
            parameters.config,
            data=parameters.data,
            out=out,
            init=parameters.init,
            tags=report.run_tags(),
            watchers=Watchers(is_cancelled=report.is_cancelling),
            # Prefect's own short-lived server loses what is reserved when its process is killed
            hosts=PrefectHosts() if settings().prefect_host else None,
        )
    except Cancelled as stopped:
        return endings.cancelled(stopped)  # type: ignore[no-any-return]
    log.info(
        "train: %s, %s",
        "already done" if result.already_done else f"{result.steps:,} steps",
        result.checkpoint,
    )
    page = f"Checkpoint `{result.checkpoint}`\n\n"
    page += f"[Run in MLflow]({link.url})" if link else "MLflow did not answer; the metrics are in metrics.jsonl."
    report.page("training", page)
    report.table("training-results", "The training", result.as_dict())
    return {**result.as_dict(), "run_id": link and link.run_id, "experiment_id": link and link.experiment_id}
