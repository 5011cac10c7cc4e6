"""watch-corpora: looks for new text, and says so as an event that starts `retrain/on-new-data`."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.states import Completed

from flows import endings
from flows.names import named
from flows.tokenize import TokenizeParameters
from gptpipe import storage
from gptpipe.data.watch import unread_sources
from gptpipe.naming import texts
from gptpipe.settings import settings

log = logging.getLogger("gptpipe.flows")
EVENT = "gptpipe.corpora.changed"


@flow(
    name="watch-corpora",
    flow_run_name=named(lambda given: f"watch · {texts(given.data.corpus)}"),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def watch_corpora(parameters: TokenizeParameters) -> Any:
    """Compare the corpora with what datasets were made of: new and changed files emit `gptpipe.corpora.changed`."""
    out = storage.join(parameters.storage or settings().storage_url, "datasets")
    unread, total = unread_sources(parameters.data, out)
    log.info("watch-corpora: %d of %d files are new or changed", len(unread), total)
    if unread:
        resource = {"prefect.resource.id": "gptpipe.corpora", "prefect.resource.name": parameters.data.corpus[0].url}
        emit_event(EVENT, resource=resource, payload={"files": total, "new": len(unread), "first": unread[:10]})
    rest = f"{EVENT} starts retrain/on-new-data" if unread else "nothing to do"
    found = {"files": total, "new": len(unread)}
    return Completed(message=f"{len(unread):,} of {total:,} files are new or changed; {rest}", data=found)
