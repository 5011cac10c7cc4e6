"""A training as Prefect's UI shows it while it runs: a bar with loss and time left, and a curve that grows."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from flows.server import report
from gptpipe.config import PipelineConfig
from gptpipe.progress import Progress
from gptpipe.tracking.plots import loss_curve

log = logging.getLogger("gptpipe.flows")
_BAR_SECONDS = 5.0
_CURVE_SECONDS = 15.0
_CURVES = 50  # at most: the server keeps what each update said for days


class Live:
    """Takes lines of metrics.jsonl and shows them on the page of the run that a person started.

    A thread of its own talks to the server: training neither waits for it nor ends with it.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self._steps = config.train.steps
        self._progress = Progress(self._steps, config.train.batch_size * config.model.context_length)
        self._title = f"{config.preset}, so far"
        self._run = report.top_run()
        self._lines: dict[int, dict[str, Any]] = {}  # by step: an attempt begins with the lines of the one before
        self._link = ""
        self._ending = threading.Event()
        self._bar: UUID | None = None
        self._curve: UUID | None = None
        self._drawn_at, self._drawn_step = 0.0, 0

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Lines as they come; never waits."""
        self._lines.update({line["step"]: line for line in lines})

    def link(self, url: str) -> None:
        """Where the curves are in MLflow."""
        self._link = url

    @contextmanager
    def shown(self, has_server: bool) -> Iterator[Live]:
        """Show it while the block runs, unless the server is one that ends with this process and that nobody sees."""
        if not has_server:
            yield self
            return
        thread = threading.Thread(target=self._work, name="live", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            thread.join(_BAR_SECONDS)

    def _work(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_BAR_SECONDS)
            try:
                with get_client(sync_client=True) as client:
                    self._show(client, ending)
            except Exception as error:  # whatever a client of a server raises
                log.debug("the progress could not be shown: %s", error)

    def _show(self, client: SyncPrefectClient, ending: bool) -> None:
        known = dict(self._lines)
        lines = [known[step] for step in sorted(known)]
        trained = [line for line in lines if "train/loss" in line]
        if not trained:
            return
        step = trained[-1]["step"]
        text = self._progress.read(lines).describe(trained[-1]).replace("  ", " · ")
        if self._link:
            text += f"\n\n[Run in MLflow]({self._link})"
        self._bar = self._put(client, self._bar, "training-progress", "progress", 100 * step / self._steps, text)
        now = time.monotonic()
        far = (step - self._drawn_step) * _CURVES >= self._steps and now - self._drawn_at > _CURVE_SECONDS
        if far or ending:
            self._drawn_at, self._drawn_step = now, step
            picture = base64.b64encode(loss_curve(lines, title=self._title, ended=False)).decode()
            page = f"{text}\n\n![loss over tokens](data:image/png;base64,{picture})"
            self._curve = self._put(client, self._curve, "training-curve", "markdown", page, "The loss so far")

    def _put(
        self, client: SyncPrefectClient, there: UUID | None, key: str, kind: str, data: Any, description: str
    ) -> UUID:
        """Make an artifact of the run, or change the one that is there."""
        if there is not None:
            client.update_artifact(there, ArtifactUpdate(data=data, description=description))
            return there
        made = ArtifactCreate(
            key=key, type=kind, data=data, description=description, flow_run_id=UUID(self._run) if self._run else None
        )
        return client.create_artifact(made).id
