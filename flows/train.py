"""train: a GPT on a token dataset, under torchrun, followed into MLflow."""

from __future__ import annotations

import logging
import time

from prefect import flow
from pydantic import Field

from flows.machines.hosts import PrefectHosts
from flows.server import endings, report
from flows.server.live import Live
from flows.server.names import named
from flows.server.report import CancelWatch
from gptpipe import storage
from gptpipe.config import PipelineConfig, Section
from gptpipe.config.names import pipeline_name
from gptpipe.config.settings import Settings, settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.launch.hosts import Hosts
from gptpipe.launch.network import route_to
from gptpipe.launch.torchrun import Cancelled, Watchers
from gptpipe.launch.training import TrainResult
from gptpipe.pipeline.speed import speed_tags
from gptpipe.storage.lease import Held
from gptpipe.tracking.client import RunLink, Tracking
from gptpipe.tracking.training import train_and_track
from gptpipe.weights.adapt import starting_from

log = logging.getLogger("gptpipe.flows")
_ASK_SECONDS = 5  # between two looks whether the same training still runs


class TrainParameters(Section):
    """A training on a dataset that exists."""

    data: str = Field(description="URL of a token dataset, or of the folder of datasets (the one made last)")
    config: PipelineConfig = Field(
        default_factory=PipelineConfig, description="Preset and settings; `data` in it is not used"
    )
    init: str = Field("", description="Checkpoint whose weights to start from; empty is random weights")
    since: str = Field("", description="Dataset that those weights have seen: what is new since is drawn more often")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


def hosts_of(here: Settings) -> Hosts | None:
    """Who has the machines. Prefect's own short-lived server has none: it loses what a killed process had reserved."""
    if not here.prefect_host:
        return None
    address, ports = here.gang_address or route_to(here.prefect_host), here.gang_port_range
    if here.jobset is None:
        return PrefectHosts(address, ports)
    try:
        from flows.machines.jobsets import JobSetHosts
    except ImportError:
        raise UserError(
            "the Kubernetes client is not installed", where="GPTPIPE_JOBSET", hint=install_hint("kubernetes")
        ) from None
    return JobSetHosts(here.jobset, here.jobset_nodes, address, ports)


@flow(name="train", flow_run_name=named(lambda given: f"train · {pipeline_name(given.config)}"))
def train(parameters: TrainParameters) -> tuple[TrainResult, RunLink | None]:
    """Train, or go on from the newest checkpoint, unless this training is finished; with the run in MLflow."""
    here = settings()
    out = storage.join(parameters.storage or here.storage_url, "trainings")
    config = starting_from(parameters.config, parameters.init)
    waits = False
    while True:
        try:
            with Live(config).shown(bool(here.prefect_host)) as live, CancelWatch().running() as was_cancelled:
                watchers = Watchers(on_metrics=live.add, is_cancelled=report.is_cancelling, was_cancelled=was_cancelled)
                result, link = train_and_track(
                    config,
                    Tracking.of(here),
                    data=parameters.data,
                    out=out,
                    init=parameters.init,
                    since=parameters.since,
                    tags={**report.run_tags(), **speed_tags(config)},
                    cache=TokenCache(limit=here.cache_bytes),
                    watchers=watchers,
                    hosts=hosts_of(here),
                    on_link=live.link,
                )
            break
        except Cancelled as stopped:
            return endings.cancelled(stopped)  # type: ignore[no-any-return]
        except Held as held:
            if not here.prefect_host:
                raise
            if here.same_training == "drop":
                return endings.cancelled(held)  # type: ignore[no-any-return]
            if not waits:
                log.warning("train: the same training runs already (%s); waiting for its end", held.message)
                waits = True
            time.sleep(_ASK_SECONDS)
    log.info(
        "train: %s, %s",
        "already done" if result.already_done else f"{result.steps:,} steps",
        result.checkpoint,
    )
    page = f"Checkpoint `{result.checkpoint}`\n\n"
    page += f"[Run in MLflow]({link.url})" if link else "MLflow did not answer; the metrics are in metrics.jsonl."
    report.page("training", page, description="Where the training is")
    report.table("training-results", "The training", result.as_dict())
    return result, link
