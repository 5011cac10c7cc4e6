"""The machines of a training by Prefect: slots that are taken all at once, and a `train-node` run for each node."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import cast
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.concurrency.sync import concurrency
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled as CancelledState
from prefect.states import Cancelling

from gptpipe.channel import Invitation
from gptpipe.torchrun import Cancelled
from gptpipe.train.job import Outcome
from gptpipe.wording import counted

log = logging.getLogger("gptpipe.flows")

NODE_POOL = "gptpipe-nodes"  # the work pool whose workers run a node each, one at a time
NODE_DEPLOYMENT = "train-node/train-node"
_SLOTS = "gptpipe-nodes"  # the concurrency limit: as many slots as workers are online
_LEASE_SECONDS = 60  # after which the slots of a parent that was killed come free
_ASK_SECONDS = 2.0
_SAY_SECONDS = 60.0
START_A_WORKER = "start one with `infra/gpu-worker.sh` on each machine"


class PrefectHosts:
    """`gptpipe.gang.Hosts`, by the Prefect server that this flow run belongs to."""

    def __init__(self) -> None:
        self._runs: list[UUID] = []
        self._asked = 0.0

    @contextmanager
    def this_machine(self) -> Iterator[None]:
        """One training in place at a time: two would share its GPUs, its cores and its memory."""
        name = f"gptpipe-machine-{socket.gethostname()}"
        with get_client(sync_client=True) as client:
            _set_limit(client, name, 1)
        said = False
        with ExitStack() as held:
            while not _hold(held, name, 1):
                if not said:
                    log.info("train: waiting until another training on this machine has ended")
                    said = True
            yield

    @contextmanager
    def nodes(self, wanted: int, least: int, poll: Callable[[], None]) -> Iterator[int]:
        """All slots at once, so that two trainings never hold half of what each needs."""
        said = 0.0
        with ExitStack() as held:
            while True:
                poll()
                with get_client(sync_client=True) as client:
                    online = _workers(client)
                    if len(online) >= least:
                        _set_limit(client, _SLOTS, len(online))
                count = min(wanted, len(online))
                if len(online) < least:
                    reason = self.missing()
                    time.sleep(_ASK_SECONDS)
                elif _hold(held, _SLOTS, count):
                    break
                else:
                    reason = f"other trainings hold them; {counted(len(online), 'node')} in all"
                if not said or time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    log.warning("train: waiting for %s: %s", counted(least, "node"), reason)
            yield count

    def start(self, invitation: Invitation, nodes: int) -> None:
        parameters = {"invitation": invitation.model_dump()}
        for number in range(1, nodes + 1):
            name = f"node {number} of {nodes}, attempt {invitation.attempt}"
            started = run_deployment(NODE_DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=name)
            self._runs.append(cast(FlowRun, started).id)

    def ailment(self) -> Outcome | None:
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return None
        self._asked = time.monotonic()
        for run in self._states():
            if run.state is None or not run.state.is_final() or run.state.is_completed():
                continue
            if run.state.type == StateType.CANCELLED:
                raise Cancelled(f"{run.name} was cancelled; the last committed checkpoint stands")
            message = str(run.state.message or run.state.name).removeprefix("Flow run encountered an exception: ")
            return Outcome(status="failed", reason=f"{run.name}: {message}")
        return None

    def missing(self) -> str:
        with get_client(sync_client=True) as client:
            online = _workers(client)
        named = f" ({', '.join(online)})" if online else ""
        return f"{counted(len(online), 'worker')} online in pool {NODE_POOL}{named}; {START_A_WORKER}"

    def end(self) -> None:
        until = time.monotonic() + 2
        with get_client(sync_client=True) as client:
            while running := [run for run in self._states() if run.state and not run.state.is_final()]:
                waiting = [run for run in running if run.state and run.state.is_scheduled()]
                for run in waiting:
                    client.set_flow_run_state(run.id, CancelledState(message="its training has ended"), force=True)
                if not waiting and time.monotonic() > until:
                    break
                time.sleep(0.2)
            for run in running:
                client.set_flow_run_state(run.id, Cancelling(message="its training has ended"))
        self._runs = []

    def _states(self) -> list[FlowRun]:
        if not self._runs:
            return []
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=self._runs)))


def _hold(held: ExitStack, name: str, slots: int) -> bool:
    """Take slots of a concurrency limit, all of them or none."""
    try:
        held.enter_context(
            concurrency(name, slots, timeout_seconds=_ASK_SECONDS, lease_duration=_LEASE_SECONDS, strict=True)
        )
    except TimeoutError:
        return False
    return True


def _workers(client: SyncPrefectClient) -> list[str]:
    """The names of the workers that are online in the pool of nodes."""
    try:
        found = client.read_workers_for_work_pool(NODE_POOL)
    except ObjectNotFound:
        return []
    return sorted(worker.name for worker in found if worker.status == WorkerStatus.ONLINE)


def _set_limit(client: SyncPrefectClient, name: str, limit: int) -> None:
    try:
        if client.read_global_concurrency_limit_by_name(name).limit == limit:
            return
    except ObjectNotFound:
        pass
    with suppress(PrefectHTTPStatusError):  # another training made it at the same moment
        client.upsert_global_concurrency_limit_by_name(name, limit)
