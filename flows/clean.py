"""clean: old versions, trainings, datasets and leftovers that nothing needs, listed or removed, by hand or schedule."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed
from pydantic import Field

from flows.server import endings
from flows.server.names import named
from gptpipe.config import Section
from gptpipe.config.settings import settings
from gptpipe.pipeline.retention import clean as remove_all
from gptpipe.pipeline.retention import removals
from gptpipe.tracking.client import Tracking
from gptpipe.wording import counted, unlinked

log = logging.getLogger("gptpipe.flows")
_SHOWN = 500  # rows of the table


class CleanParameters(Section):
    """What may go."""

    older_than: float = Field(30.0, ge=0, title="Older than", description="What is younger stays, in days")
    keep_versions: int | None = Field(
        None,
        ge=1,
        title="Versions to keep",
        description="Of each registered model this many stay, and those with an alias; empty: all",
    )
    apply: bool = Field(False, title="Remove it", description="Off: it is only listed")


@flow(
    name="clean",
    flow_run_name=named(lambda given: f"clean · {given.older_than:g} days" + ("" if given.apply else " · only listed")),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def clean(parameters: CleanParameters) -> Any:
    """List what no registered version, kept or running run refers to; remove it where that is asked for."""
    here = settings()
    do = remove_all if parameters.apply else removals
    listed = do(here.storage_url, Tracking.of(here), parameters.older_than, keep_versions=parameters.keep_versions)
    rows = [
        {"kind": each.kind, "MB": round(each.bytes / 1e6, 1), "days": round(each.age, 1), "place": unlinked(each.place)}
        for each in listed
    ]
    verb = "removed" if parameters.apply else "may be removed"
    sentence = f"{counted(len(listed), 'thing')}, {sum(each.bytes for each in listed) / 1e6:,.1f} MB, {verb}"
    if rows:
        create_table_artifact(table=rows[:_SHOWN], key="clean", description=sentence)
    log.info("clean: %s", sentence)
    return Completed(message=sentence, data=[each.as_dict() for each in listed])
