"""watch-corpora: looks for new text, and says so as an event that starts `retrain/on-new-data`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.events import emit_event
from prefect.states import Completed
from pydantic import Field

from flows.server import endings
from flows.server.names import named
from gptpipe import storage
from gptpipe.config import DataConfig, parse
from gptpipe.config.form import CORPUS_LINE, FormSection, corpus_of, form_of
from gptpipe.config.names import texts
from gptpipe.config.settings import settings
from gptpipe.corpus.watch import unread_sources

log = logging.getLogger("gptpipe.flows")
EVENT = "gptpipe.corpora.changed"


if TYPE_CHECKING:
    DataOptions = FormSection
else:
    DataOptions = form_of(DataConfig, "DataOptions", without=("corpus",), key="data.")


class WatchParameters(FormSection):
    """The texts that are looked at."""

    corpus: list[str] | None = Field(None, title="Corpus", description=f"{CORPUS_LINE} Empty: stdlib:")
    data: DataOptions | None = Field(None, title="Data", description="How they are read; by default as retrain does")
    storage: str | None = Field(None, title="Storage", description="Folder or s3:// URL; by default GPTPIPE_STORAGE")

    @property
    def config(self) -> DataConfig:
        values = self.data.model_dump(mode="json", exclude_none=True) if self.data else {}
        if self.corpus:
            values["corpus"] = [corpus_of(line) for line in self.corpus]
        config: DataConfig = parse(DataConfig, values, where="data")
        return config


@flow(
    name="watch-corpora",
    flow_run_name=named(lambda given: f"watch · {texts(given.config.corpus)}"),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def watch_corpora(parameters: WatchParameters) -> Any:
    """Compare the corpora with what datasets were made of: new and changed files emit `gptpipe.corpora.changed`."""
    out = storage.join(parameters.storage or settings().storage_url, "datasets")
    config = parameters.config
    unread, total = unread_sources(config, out)
    log.info("watch-corpora: %d of %d files are new or changed", len(unread), total)
    if unread:
        resource = {"prefect.resource.id": "gptpipe.corpora", "prefect.resource.name": config.corpus[0].url}
        emit_event(EVENT, resource=resource, payload={"files": total, "new": len(unread), "first": unread[:10]})
    rest = f"{EVENT} starts retrain/on-new-data" if unread else "nothing to do"
    counts = {"files": total, "new": len(unread)}
    return Completed(message=f"{len(unread):,} of {total:,} files are new or changed; {rest}", data=counts)
