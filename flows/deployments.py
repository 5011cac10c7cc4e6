"""The deployments, in one place: what the Prefect UI, schedules and triggers start."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Cancelling
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.clean import clean
from flows.evaluate import evaluate
from flows.machines.hosts import NODE_POOL
from flows.retrain import retrain
from flows.score_champion import score_champion
from flows.server import automations
from flows.server.automations import TAG
from flows.sweep import sweep
from flows.train_node import train_node
from flows.watch_corpora import EVENT, watch_corpora
from gptpipe.config import PipelineConfig, deep_merge, load_config
from gptpipe.config.form import filled
from gptpipe.config.settings import settings
from gptpipe.config.text import read_yaml
from gptpipe.errors import UserError
from gptpipe.version import __version__
from gptpipe.wording import duration

log = logging.getLogger("gptpipe.flows")
_COLLISION = {"queue": ConcurrencyLimitStrategy.ENQUEUE, "drop": ConcurrencyLimitStrategy.CANCEL_NEW}
ENVIRONMENT = "from-env"  # the slug of the schedule that comes from the settings; all others are people's


@dataclass(frozen=True)
class Planned:
    """A deployment as it should be."""

    flow: Flow[..., Any]
    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    cron: str | None = None
    cron_setting: str = ""  # where the cron expression comes from
    pool: str | None = None
    event: str | None = None

    @property
    def full_name(self) -> str:
        return f"{self.flow.name}/{self.name}"

    @property
    def text(self) -> str:
        """The description, with where the schedule comes from."""
        if not self.cron_setting:
            return self.description
        if not self.cron:
            return f"{self.description} Not scheduled: {self.cron_setting} is empty."
        return f"{self.description} `{self.cron}` in {settings().timezone} comes from {self.cron_setting}."


@dataclass(frozen=True)
class Deployed:
    """What `deploy` made: the deployments' full names, and what it left as people had set it, a line each."""

    names: list[str]
    notes: list[str]


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
            "The same every night.",
            {"parameters": values},
            cron=settings().nightly_cron,
            cron_setting="GPTPIPE_NIGHTLY_CRON",
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
            "Looks for new text; what it finds starts retrain/on-new-data.",
            {"parameters": {key: values[key] for key in ("corpus", "data") if key in values}},
            cron=settings().watch_cron,
            cron_setting="GPTPIPE_WATCH_CRON",
        ),
        Planned(
            score_champion,
            "watch-champion",
            "Scores the model that serves on text that came after it, and says when it has drifted.",
            {"parameters": values},
            cron=settings().champion_cron,
            cron_setting="GPTPIPE_CHAMPION_CRON",
        ),
        Planned(
            clean,
            "old-files",
            "Lists old versions, and trainings and datasets that nothing refers to; by its schedule it removes them.",
            {"parameters": {"apply": bool(settings().clean_cron), "keep_versions": settings().keep_versions}},
            cron=settings().clean_cron,
            cron_setting="GPTPIPE_CLEAN_CRON",
        ),
        Planned(
            sweep,
            "on-demand",
            "Train many times with other settings, and say which are best: a grid, draws, TPE, or successive halving.",
            {"parameters": {"sweep": {"search": ["train.learning_rate=1e-4..1e-2"]}, "pipeline": values}},
        ),
        Planned(evaluate, "evaluate", "Score weights on a dataset: cross-entropy, perplexity, bits per byte."),
    ]


def _node() -> Planned:
    return Planned(
        train_node,
        "train-node",
        "Not for people: a training on several machines starts it on each of them.",
        pool=NODE_POOL,
    )


def deploy_nodes() -> None:
    """Make the work pool of the machines that train together, and what runs on each, where there is none yet.

    A set-up of one machine has neither: a pool without workers is shown as not ready.
    """
    with get_client(sync_client=True) as client:
        _make_pool(client, NODE_POOL, "Machines that train together: a worker on each, one node at a time")
        if _read(client, _node().full_name) is None:
            _apply(_node(), NODE_POOL, paused=False)


def _make_pool(client: SyncPrefectClient, name: str, description: str) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))
    except ObjectAlreadyExists:
        log.debug("work pool %s is there", name)


def deploy(pool: str) -> Deployed:
    """Make pools, deployments and automations; the same again changes nothing, renamed deployments are removed.

    What a person has set in the UI stays: a deployment or schedule that is paused, a schedule that was added. The
    schedule that comes from the settings is known by its slug, and follows them.

    Raises:
        UserError: the cron expression or the time zone is not one.
    """
    deployments = planned()
    crons = [_schedule(each) for each in deployments]
    notes: list[str] = []
    with get_client(sync_client=True) as client:
        _make_pool(client, pool, "Flow runs of gptpipe, as processes of its workers")
        if pool == NODE_POOL or _read(client, _node().full_name) is not None:
            deployments.append(_node())
            crons.append(None)
        identities = []
        for each, cron in zip(deployments, crons, strict=True):
            before = _read(client, each.full_name)
            identity = _apply(each, pool, paused=bool(before and before.paused))
            identities.append(identity)
            notes += _settle_schedules(client, each, identity, cron)
            notes += _differences(each, before)
        retrainings = [one for one, each in zip(identities, deployments, strict=True) if each.flow is retrain]
        automations.apply(client, automations.planned(TAG, retrainings))
        names = {each.full_name for each in deployments}
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        for deployed in client.read_deployments(deployment_filter=ours):
            flow_name = client.read_flow(deployed.flow_id).name
            if f"{flow_name}/{deployed.name}" not in names:
                client.delete_deployment(deployed.id)
                log.info("deploy: removed %s/%s", flow_name, deployed.name)
    return Deployed(sorted(names), notes)


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _apply(each: Planned, pool: str, *, paused: bool) -> UUID:
    """Make one deployment, or make it as it should be. Its schedules are left alone."""
    made = RunnerDeployment.from_flow(
        each.flow,
        each.name,
        description=each.text,
        parameters=each.parameters,
        paused=paused,
        tags=[TAG],
        version=__version__,
        work_pool_name=each.pool or pool,
        triggers=[DeploymentEventTrigger(expect={each.event})] if each.event else None,
        # what is triggered while it runs would find the same texts
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=_COLLISION[settings().same_training])
        if each.cron_setting or each.event
        else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.entrypoint = f"flows.deployed.{each.flow.fn.__name__}"
    made.model_fields_set.discard("schedules")  # an empty list would remove those that are there
    identity = cast(UUID, made.apply())
    _refuse_other_parameters(identity)
    return identity


def _refuse_other_parameters(deployment: UUID) -> None:
    """Have the server refuse what stands beside the form's values: the run's process could not even begin with it."""
    with get_client(sync_client=True) as client:
        schema = client.read_deployment(deployment).parameter_openapi_schema
        closed = DeploymentUpdate(parameter_openapi_schema={**(schema or {}), "additionalProperties": False})
        client.update_deployment(deployment, closed)


def _settle_schedules(client: SyncPrefectClient, each: Planned, identity: UUID, cron: CronSchedule | None) -> list[str]:
    """Make the deployment's schedule from the settings as they are; notes about all that people have set."""
    there = client.read_deployment_schedules(identity)
    own = [schedule for schedule in there if schedule.slug == ENVIRONMENT]
    notes = [
        f"{each.full_name}: {_described(schedule.schedule)}, added in the UI, stays"
        for schedule in there
        if schedule not in own
    ]
    if cron is None:
        for schedule in own:
            client.delete_deployment_schedule(identity, schedule.id)
            notes.append(f"{each.full_name}: {_described(schedule.schedule)} is removed: {each.cron_setting} is empty")
        return notes
    if not own:
        made = DeploymentScheduleCreate(schedule=cron, active=True, slug=ENVIRONMENT)
        client.create_deployment_schedules(identity, [made])
        return notes
    (schedule,) = own
    if not schedule.active:
        notes.append(f"{each.full_name}: {each.cron_setting} is paused in the UI, and stays so")
    if _described(schedule.schedule) != _described(cron):
        client.update_deployment_schedule(identity, schedule.id, active=schedule.active, schedule=cron)
        notes.append(
            f"{each.full_name}: {_described(schedule.schedule)} is now {_described(cron)}: {each.cron_setting}"
        )
    return notes


def _described(schedule: Any) -> str:
    if isinstance(schedule, CronSchedule):
        return f"the schedule `{schedule.cron}` in {schedule.timezone or 'UTC'}"
    if isinstance(schedule, IntervalSchedule):
        return f"the schedule of every {duration(schedule.interval.total_seconds())}"
    return "a schedule"


def _differences(each: Planned, before: DeploymentResponse | None) -> list[str]:
    """What is said of a deployment that was there: what stays paused, and what the settings have replaced."""
    if before is None:
        return []
    notes = [f"{each.full_name}: paused in the UI, and stays so"] if before.paused else []
    if before.parameters != each.parameters:
        source = f"GPTPIPE_RETRAIN_CONFIG={settings().retrain_config or ''}"
        notes.append(f"{each.full_name}: its parameters were others; they are now those of {source}")
    return notes


def cancel_running(seconds: float = 20) -> int:
    """Cancel every flow run that runs, and wait until they have ended; how many there were."""
    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])),
        deployment_id=FlowRunFilterDeploymentId(is_null_=False),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=running)
        for run in runs:
            client.set_flow_run_state(run.id, Cancelling(message="the stack is being stopped"))
        until = time.monotonic() + seconds
        left = [run.id for run in runs]
        while left and time.monotonic() < until:
            time.sleep(0.2)
            states = [client.read_flow_run(each).state for each in left]
            left = [each for each, state in zip(left, states, strict=True) if state and not state.is_final()]
    return len(runs)


def _values() -> dict[str, Any]:
    """What GPTPIPE_RETRAIN_CONFIG says, as the form shows it.

    Raises:
        UserError: the file is not there, or says something that cannot be used.
    """
    file = settings().retrain_config
    if file is None:
        return {}
    config = load_config(file=file)
    values = read_yaml(file, PipelineConfig)
    if "corpus" in (values.get("data") or {}):  # in a file a corpus may be a text
        corpora = [corpus.model_dump(mode="json", exclude_none=True) for corpus in config.data.corpus]
        values = deep_merge(values, {"data": {"corpus": corpora}})
    return filled(values)


def _schedule(each: Planned) -> CronSchedule | None:
    if not each.cron:
        return None
    zone = settings().timezone
    try:
        return CronSchedule(cron=each.cron, timezone=zone)
    except ValidationError as error:
        raise UserError(
            f"{each.cron!r} in {zone!r} cannot be used: {error.errors()[0]['msg']}",
            where=f"{each.cron_setting}, GPTPIPE_TIMEZONE",
            hint="for example '0 2 * * *' and Europe/Berlin",
        ) from None
