"""The deployments, in one place: what the Prefect UI, schedules and triggers start."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists
from prefect.schedules import Cron
from prefect.states import Cancelling
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows import automations
from flows.evaluate import evaluate
from flows.hosts import NODE_POOL
from flows.retrain import retrain
from flows.train_node import train_node
from flows.watch_corpora import EVENT, watch_corpora
from gptpipe import __version__
from gptpipe.config import deep_merge, load_config, read_yaml
from gptpipe.errors import UserError
from gptpipe.settings import settings

log = logging.getLogger("gptpipe.flows")
_COLLISION = {"queue": ConcurrencyLimitStrategy.ENQUEUE, "drop": ConcurrencyLimitStrategy.CANCEL_NEW}
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
    event: str | None = None

    @property
    def full_name(self) -> str:
        return f"{self.flow.name}/{self.name}"


def planned() -> list[Planned]:
    """All of them, by the settings."""
    values = _values()
    return [
        Planned(
            retrain,
            "on-demand",
            "Train a GPT on text, score it, register it, and make it champion if it is better. Press Run, choose a "
            "preset, and leave the rest as it is, or change it.",
            {"parameters": values},
        ),
        Planned(
            retrain,
            "nightly",
            "The same every night, when GPTPIPE_NIGHTLY_CRON says so.",
            {"parameters": values},
            cron=settings().nightly_cron,
        ),
        Planned(
            retrain,
            "on-new-data",
            "The same whenever watch-corpora has seen text that no dataset was made of.",
            {"parameters": values},
            event=EVENT,
        ),
        Planned(
            watch_corpora,
            "watch-corpora",
            "Looks for new text when GPTPIPE_WATCH_CRON says so; what it finds starts retrain/on-new-data.",
            {"parameters": {"data": values["data"]} if "data" in values else {}},
            cron=settings().watch_cron,
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
    """Make pools, deployments and automations; the same again changes nothing, renamed deployments are removed.

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
            triggers=[DeploymentEventTrigger(expect={each.event})] if each.event else None,
            # what is triggered while it runs would find the same texts
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=_COLLISION[settings().same_training])
            if each.cron or each.event
            else None,
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
        identities = [cast(UUID, deployment.apply()) for deployment in made]
        retrainings = [one for one, each in zip(identities, wanted, strict=True) if each.flow is retrain]
        automations.apply(client, automations.planned(TAG, retrainings))
        names = {each.full_name for each in wanted}
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        for found in client.read_deployments(deployment_filter=ours):
            flow_name = client.read_flow(found.flow_id).name
            if f"{flow_name}/{found.name}" not in names:
                client.delete_deployment(found.id)
                log.info("deploy: removed %s/%s", flow_name, found.name)
    return sorted(names)


def cancel_running(seconds: float = 20) -> int:
    """Cancel every flow run that runs, and wait until they have ended; how many there were."""
    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])),
        deployment_id=FlowRunFilterDeploymentId(is_null_=False),
    )
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=running)
        for run in found:
            client.set_flow_run_state(run.id, Cancelling(message="the stack is being stopped"))
        until = time.monotonic() + seconds
        left = [run.id for run in found]
        while left and time.monotonic() < until:
            time.sleep(0.2)
            states = [client.read_flow_run(each).state for each in left]
            left = [each for each, state in zip(left, states, strict=True) if state and not state.is_final()]
    return len(found)


def _values() -> dict[str, Any]:
    """What GPTPIPE_RETRAIN_CONFIG says, as the form shows it.

    Raises:
        UserError: the file is not there, or says something that cannot be used.
    """
    file = settings().retrain_config
    if file is None:
        return {}
    config = load_config(file=file)
    values = read_yaml(file)
    if "corpus" in (values.get("data") or {}):  # in a file a corpus may be a text
        corpora = [corpus.model_dump(mode="json", exclude_none=True) for corpus in config.data.corpus]
        values = deep_merge(values, {"data": {"corpus": corpora}})
    return values


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
