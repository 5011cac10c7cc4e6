"""What the flows leave in Prefect's UI: tables, links, the loss picture."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run


def table(key: str, description: str, values: dict[str, Any]) -> None:
    """A two-column table of results."""
    rows = [{"what": name.replace("_", " "), "value": _shown(value)} for name, value in values.items()]
    create_table_artifact(table=rows, key=key, description=description)


def page(key: str, text: str, picture: bytes | None = None, *, description: str) -> None:
    """A page of Markdown with an optional PNG at its end."""
    if picture is not None:
        text += f"\n\n![loss over tokens](data:image/png;base64,{base64.b64encode(picture).decode()})"
    create_markdown_artifact(markdown=text, key=key, description=description)


def run_tags() -> dict[str, str]:
    """What an MLflow run says about the flow run that made it."""
    return {"prefect.flow_run_id": str(flow_run.id), "prefect.flow_run_name": str(flow_run.name)}


def is_cancelling() -> bool:
    """Whether this flow run, or the one it is a part of, was cancelled, so that a SIGTERM means: do not save."""
    if not flow_run.id:
        return False
    with get_client(sync_client=True) as client:
        states = [client.read_flow_run(each).state for each in {UUID(str(flow_run.id)), UUID(top_run())}]
    return any(state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED) for state in states)


def top_run() -> str:
    """The id of the flow run that a person or a schedule started, of which this one may be a part; empty outside."""
    return _top_of(str(flow_run.id)) if flow_run.id else ""


@lru_cache(maxsize=8)
def _top_of(run: str) -> str:
    """Asked for once: the server tells, and it may be away later."""
    return str(flow_run.root_flow_run_id or run)


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
