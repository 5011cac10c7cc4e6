"""watch-corpora: looks for new text, and says so as an event that starts `retrain/on-new-data`."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.events import emit_event

from flows.tokenize import TokenizeParameters
from gptpipe import storage
from gptpipe.data.watch import unread_sources
from gptpipe.settings import settings

log = logging.getLogger("gptpipe.flows")
EVENT = "gptpipe.corpora.changed"


@flow(name="watch-corpora")
def watch_corpora(parameters: TokenizeParameters) -> dict[str, Any]:
    """Compare the corpora with what datasets were made of: new and changed files emit `gptpipe.corpora.changed`."""
    out = storage.join(parameters.storage or settings().storage_url, "datasets")
    unread, total = unread_sources(parameters.data, out)
    log.info("watch-corpora: %d of %d files are new or changed", len(unread), total)
    if unread:
        resource = {"prefect.resource.id": "gptpipe.corpora", "prefect.resource.name": parameters.data.corpus[0].url}
        emit_event(EVENT, resource=resource, payload={"files": total, "new": len(unread), "first": unread[:10]})
    return {"files": total, "new": len(unread)}
