"""The machines of a training by Prefect: its workers, and a `train-node` run for each node."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled as CancelledState
from prefect.states import Cancelling

from flows.machines import slots
from gptpipe.launch.channel import Invitation
from gptpipe.launch.job import Outcome
from gptpipe.launch.torchrun import Cancelled
from gptpipe.wording import counted

NODE_POOL = "gptpipe-nodes"  # the work pool whose workers run a node each, one at a time
NODE_DEPLOYMENT = "train-node/train-node"
_ASK_SECONDS = 2.0
START_A_WORKER = "start one with `infra/gpu-worker.sh` on each machine"


class PrefectHosts:
    """`gptpipe.launch.gang.Hosts`, by the Prefect server that this flow run belongs to."""

    def __init__(self, address: str, ports: range) -> None:
        self.address, self.ports = address, ports
        self._runs: list[UUID] = []
        self._asked = 0.0

    def this_machine(self) -> AbstractContextManager[None]:
        return slots.machine(socket.gethostname())

    def nodes(self, most: int, least: int, poll: Callable[[], None]) -> AbstractContextManager[int]:
        return slots.nodes(most, least, poll, lambda: len(self._online()), self.missing)

    def start(self, invitation: Invitation, nodes: int) -> None:
        parameters = {"invitation": invitation.model_dump()}
        for number in range(1, nodes + 1):
            name = f"node {number} of {nodes}, attempt {invitation.attempt}"
            started = run_deployment(NODE_DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=name)
            self._runs.append(cast(FlowRun, started).id)

    def problem(self) -> Outcome | None:
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return None
        self._asked = time.monotonic()
        for run in self._states():
            if run.state is not None and run.state.type == StateType.CANCELLED:
                raise Cancelled(f"{run.name} was cancelled; the last committed checkpoint stands")
        cause = self.cause()
        return Outcome(status="failed", reason=cause) if cause else None

    def cause(self) -> str:
        for run in self._states():
            if run.state is not None and run.state.type in (StateType.FAILED, StateType.CRASHED):
                message = str(run.state.message or run.state.name)
                return f"{run.name}: {message.removeprefix('Flow run encountered an exception: ')}"
        return ""

    def missing(self) -> str:
        online = self._online()
        named = f" ({', '.join(online)})" if online else ""
        return f"{counted(len(online), 'worker')} online in pool {NODE_POOL}{named}; {START_A_WORKER}"

    def end(self) -> None:
        until = time.monotonic() + 2
        with suppress(*slots.AWAY), get_client(sync_client=True) as client:  # the nodes end by themselves
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
        """The runs of the nodes; none where the server is away."""
        if not self._runs:
            return []
        with suppress(*slots.AWAY), get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=self._runs)))
        return []

    def _online(self) -> list[str]:
        """The names of the workers that are online in the pool of nodes."""
        with get_client(sync_client=True) as client:
            try:
                workers = client.read_workers_for_work_pool(NODE_POOL)
            except ObjectNotFound:
                return []
        return sorted(worker.name for worker in workers if worker.status == WorkerStatus.ONLINE)
