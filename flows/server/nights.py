"""Retrainings that Prefect knows of and MLflow does not: skipped, refused, failed before anything was trained."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterStartTime,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError

from gptpipe.errors import UserError
from gptpipe.tracking.history import Entry

_PAGE = 200
_TRACKED = ("Completed", "Running", "Pending", "Scheduled", "Late")  # MLflow tells of them, or they are not over


def nights_without_training(since: float, pages: str) -> list[Entry]:
    """Flow runs of `retrain` since then that ended in another state than done.

    Args:
        since: seconds since 1970. pages: where a browser finds Prefect.

    Raises:
        httpx.HTTPError, PrefectHTTPStatusError: the server does not answer.
    """
    begin = FlowRunFilterStartTime(after_=datetime.fromtimestamp(since, UTC))
    entries: list[Entry] = []
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])),
                flow_run_filter=FlowRunFilter(start_time=begin),
                sort=FlowRunSort.START_TIME_ASC,
                limit=_PAGE,
                offset=len(entries),
            )
            entries += [
                Entry(
                    began=run.start_time.timestamp() if run.start_time else since,
                    name=str(run.name),
                    url=f"{pages}/runs/flow-run/{run.id}",
                    verdict=str(run.state.name).lower() if run.state else "unknown",
                    reason=reason_of(run.state) if run.state else "",
                    flow_run=str(run.id),
                )
                for run in page
            ]
            if len(page) < _PAGE:
                break
    tracked = {name.lower() for name in _TRACKED}
    return [entry for entry in entries if entry.verdict not in tracked]


def reason_of(state: State) -> str:
    """What a state says, without its name, and without the words that Prefect puts before an error."""
    message = state.message or ""
    for before in ("Flow run encountered an exception: ", f"{UserError.__name__}: ", f"{str(state.name).lower()}: "):
        message = message.removeprefix(before)
    return message


AWAY = (httpx.HTTPError, PrefectHTTPStatusError)
