"""How a flow run ends early: cancelled it says so, preempted it is scheduled once more and goes on elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Scheduled

from gptpipe.errors import Preempted

_PAUSE = timedelta(seconds=5)


def cancelled(reason: BaseException) -> Any:
    """What a flow returns that was cancelled; whoever called it gets a `CancelledRun`."""
    return Cancelled(message=str(reason))


def go_on_later(stopped: Preempted) -> NoReturn:
    """Schedule this flow run again, so that another worker, or this one, goes on from what was saved.

    Raises:
        Preempted: no worker would take it up: the run was started by hand.
        Abort: it is scheduled; this process has nothing more to say about it.
    """
    if not deployment.id or not flow_run.id:
        raise stopped
    again: State[Any] = Scheduled(name="Preempted", message=str(stopped), scheduled_time=datetime.now(UTC) + _PAUSE)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), again, force=True)
    raise Abort(str(stopped)) from stopped
