"""What the flows leave in Prefect's UI: tables, links, the loss picture."""

from __future__ import annotations

import base64
import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run

from gptpipe.wording import unlinked

_AWAY = (httpx.HTTPError, PrefectHTTPStatusError)
_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
_ASK_SECONDS = 2.0  # an answer costs server and client 13 ms of a core; a worker signals its own runs at once


def table(key: str, description: str, values: dict[str, Any]) -> None:
    """A two-column table of results."""
    rows = [{"what": name.replace("_", " "), "value": _shown(value)} for name, value in values.items()]
    create_table_artifact(table=rows, key=key, description=description)


def page(
    key: str, text: str, picture: bytes | None = None, *, description: str, shows: str = "loss over tokens"
) -> None:
    """A page of Markdown with an optional PNG at its end; `shows` is what is read where the picture is not seen."""
    if picture is not None:
        text += f"\n\n![{shows}](data:image/png;base64,{base64.b64encode(picture).decode()})"
    create_markdown_artifact(markdown=text, key=key, description=description)


def emit(model: str, event: str, payload: dict[str, Any]) -> None:
    """An event of a registered model, which an automation can pass on to people."""
    resource = {"prefect.resource.id": f"gptpipe.model.{model}", "prefect.resource.name": model}
    emit_event(event, resource=resource, payload=payload)


def run_tags() -> dict[str, str]:
    """What an MLflow run says about the flow run that a person or a schedule started, which it is a part of."""
    top = top_run()
    run = _read(top)
    name = str(run.name if run else flow_run.name)
    return {"prefect.flow_run_id": top, "prefect.flow_run_name": name, "flow_run": name, "trigger": _trigger(run)}


def _read(run: str) -> FlowRun | None:
    """A flow run as the server knows it; None where the server does not answer."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(run))
    except (*_AWAY, ValueError):
        return None


def _trigger(run: FlowRun | None) -> str:
    """Who or what started a run: a schedule, a person with the button or the API, or a person's command."""
    if run is None:
        return "unknown"
    if run.auto_scheduled:
        return "schedule"
    return "button or API" if run.deployment_id else "command line"


def is_cancelling() -> bool:
    """Whether this flow run, or the one it is a part of, was cancelled; False where the server does not answer."""
    if not flow_run.id:
        return False
    try:
        with get_client(sync_client=True) as client:
            return _is_cancelling(client)
    except _AWAY:
        return False


def _is_cancelling(client: SyncPrefectClient) -> bool:
    ids = [UUID(str(flow_run.id)), UUID(top_run())]  # a subflow is still running when its parent is cancelled
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
    return any(run.state is not None and run.state.type in _CANCELLED for run in runs)


class CancelWatch:
    """Asks all the time, in a thread of its own, whether this run was cancelled: the server may be slow, or away."""

    def __init__(self) -> None:
        self._cancelled, self._ended = threading.Event(), threading.Event()

    def __call__(self) -> bool:
        """Whether it is known to have been cancelled; answers at once."""
        return self._cancelled.is_set()

    @contextmanager
    def running(self) -> Iterator[CancelWatch]:
        """Ask while the block runs."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._ask,), name="cancel-watch", daemon=True).start()
        try:
            yield self
        finally:
            self._ended.set()

    def _ask(self) -> None:
        with get_client(sync_client=True) as client:
            while flow_run.id and not self._ended.wait(_ASK_SECONDS) and not self._cancelled.is_set():
                with suppress(*_AWAY):
                    if _is_cancelling(client):
                        self._cancelled.set()


def top_run() -> str:
    """The id of the flow run that a person or a schedule started, of which this one may be a part; empty outside."""
    if not flow_run.id:
        return ""
    try:
        return _top_of(str(flow_run.id))
    except _AWAY:
        return str(flow_run.id)


@lru_cache(maxsize=8)
def _top_of(run: str) -> str:
    """Asked for once: the server tells, and it may be away later."""
    return str(flow_run.root_flow_run_id or run)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if type(value) is int else unlinked(str(value))
