"""How a flow run ends early, and begins again: cancelled, preempted, crashed with its machine."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events import emit_event
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed, Scheduled

from flows.server import report
from flows.server.automations import TAG
from gptpipe.errors import Preempted

_PAUSE = timedelta(seconds=5)
_AGAIN_SECONDS = 0.5
_UNENDED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
_TO_BE_DONE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.COMPLETED]


def cancelled(reason: BaseException) -> Any:
    """What a flow returns that was cancelled; whoever called it gets a `CancelledRun`."""
    return Cancelled(message=str(reason))


def go_on_later(stopped: Preempted | TerminationSignal) -> NoReturn:
    """Schedule this flow run again, so that another worker, or this one, goes on from what was saved.

    Args:
        stopped: in mid-training, or a SIGTERM in another stage, which had nothing to save.

    Raises:
        Preempted, TerminationSignal: the run was cancelled, or no worker would take it up as it was started by hand.
        Abort: it is scheduled; this process has nothing more to say about it.
    """
    if not deployment.id or not flow_run.id or report.is_cancelling():
        raise stopped
    message = str(stopped) if isinstance(stopped, Preempted) else "SIGTERM; nothing that was done is done again"
    again: State[Any] = Scheduled(name="Preempted", message=message, scheduled_time=datetime.now(UTC) + _PAUSE)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), again, force=True)
    _say_last_word(str(flow_run.id))
    raise Abort(message) from stopped


def last_word(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for a run's end: say that no heartbeat follows.

    A heartbeat may reach the server after the run's last state, and silence after it would look like a crash. Events of
    one process arrive in their order: after this one none of its heartbeats does.
    """
    _say_last_word(str(flow_run.id))
    if flow_run.deployment_id:  # nobody looks for the silence of others
        # the server takes up two events at once: a heartbeat just before may be the second, and is followed by this one
        time.sleep(_AGAIN_SECONDS)
        _say_last_word(str(flow_run.id))


def missed() -> str:
    """Why this run need not do anything; empty where it must.

    Servers that were away for some nights start all of them at once when they are back. The newest does what all would.
    """
    if not deployment.id or not flow_run.id or (flow_run.run_count or 1) > 1:
        return ""
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(str(flow_run.id)))
        if not own.auto_scheduled or own.expected_start_time is None:
            return ""
        later = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[UUID(str(deployment.id))]),
                expected_start_time=FlowRunFilterExpectedStartTime(
                    after_=own.expected_start_time + timedelta(seconds=1), before_=datetime.now(UTC)
                ),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_TO_BE_DONE)),
            )
        )
    newer = [each for each in later if each.auto_scheduled and each.id != own.id]
    return f"missed: {newer[0].name} of the same schedule is due by now, and does the same" if newer else ""


def _say_last_word(run: str) -> None:
    resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
    tag = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
    emit_event("prefect.flow-run.ended", resource=resource, related=[tag])


def end_what_was_killed(before: datetime) -> None:
    """Say of flow runs whose process is gone that they have crashed: a killed one could not say it itself.

    Args:
        before: those that were due earlier have no process any more.
    """
    due = FlowRunFilterExpectedStartTime(before_=before)
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNENDED))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(expected_start_time=due, state=state)):
            crashed: State[Any] = Crashed(message="its process was killed; what it had done is not done again")
            client.set_flow_run_state(run.id, crashed, force=True)
