"""The deployments, in one place: what the Prefect UI, schedules and triggers start."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.evaluate import evaluate
from flows.hosts import NODE_POOL
from flows.retrain import retrain
from flows.train_node import train_node
from gptpipe import __version__
from gptpipe.errors import UserError
from gptpipe.settings import settings

log = logging.getLogger("gptpipe.flows")
TAG = "gptpipe"  # of every deployment that is ours: one that this page does not name any more is removed


@dataclass(frozen=True)
class Planned:
    """A deployment as it should be."""

    flow: Flow[..., Any]
    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    cron: str | None = None
    pool: str | None = None

    @property
    def full_name(self) -> str:
        return f"{self.flow.name}/{self.name}"


def planned() -> list[Planned]:
    """All of them, by the settings."""
    return [
        Planned(
            retrain,
            "on-demand",
            "Train a GPT on text, score it, register it, and make it champion if it is better. Press Run, choose a "
            "preset, and leave the rest as it is, or change it.",
            {"parameters": {}},
        ),
        Planned(
            retrain,
            "nightly",
            "The same every night, when GPTPIPE_NIGHTLY_CRON says so.",
            {"parameters": {}},
            cron=settings().nightly_cron,
        ),
        Planned(
            train_node,
            "train-node",
            "One machine's part of a training on several. The training starts it.",
            pool=NODE_POOL,
        ),
        Planned(evaluate, "evaluate", "Score weights on a dataset: cross-entropy, perplexity, bits per byte."),
    ]


def deploy(pool: str) -> list[str]:
    """Make the work pool and register every deployment; the same again changes nothing, renamed ones are removed.

    Returns:
        The deployments' full names.

    Raises:
        UserError: the cron expression or the time zone is not one.
    """
    wanted = planned()
    made = [
        RunnerDeployment.from_flow(
            each.flow,
            each.name,
            description=each.description,
            parameters=each.parameters,
            schedule=_schedule(each.cron),
            tags=[TAG],
            version=__version__,
            work_pool_name=each.pool or pool,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for each in wanted
    ]
    with get_client(sync_client=True) as client:
        for name, description in (
            (pool, "Flow runs of gptpipe, as processes of its workers"),
            (NODE_POOL, "Nodes of trainings on several machines: a worker on each, one node at a time"),
        ):
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))
            except ObjectAlreadyExists:
                log.debug("work pool %s is there", name)
        for deployment in made:
            deployment.apply()
        names = {each.full_name for each in wanted}
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        for found in client.read_deployments(deployment_filter=ours):
            flow_name = client.read_flow(found.flow_id).name
            if f"{flow_name}/{found.name}" not in names:
                client.delete_deployment(found.id)
                log.info("deploy: removed %s/%s", flow_name, found.name)
    return sorted(names)


def _schedule(cron: str | None) -> Any:
    if not cron:
        return None
    zone = settings().timezone
    try:
        CronSchedule(cron=cron, timezone=zone)
    except ValidationError as error:
        raise UserError(
            f"{cron!r} in {zone!r} cannot be used: {error.errors()[0]['msg']}",
            where="GPTPIPE_NIGHTLY_CRON, GPTPIPE_TIMEZONE",
            hint="for example '0 2 * * *' and Europe/Berlin",
        ) from None
    return Cron(cron, timezone=zone)
