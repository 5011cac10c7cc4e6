"""What a team lead reads after a retraining: loss, decision, samples then and now, the text, cost, what was skipped.

All of it is read back from MLflow, so that a report can be made of any run at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from gptpipe import storage
from gptpipe.config import PipelineConfig
from gptpipe.dataset.drift import Measure
from gptpipe.launch.training import TrainResult
from gptpipe.tracking.client import RunLink, Tracking
from gptpipe.tracking.comparison import facts_of, find_run, losses_of
from gptpipe.tracking.follow import CHANGED_TAG, END_TAG
from gptpipe.tracking.moves import DECISION_TAG
from gptpipe.tracking.promote import Decision
from gptpipe.tracking.registry import COMPARED_TAG, MODELS, decision_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
REPORT_PAGE = "report.html"
_NIGHT_FILE = "night.json"
_MOST_SAMPLES = 5


@dataclass(frozen=True)
class Night:
    """What only the pipeline itself knows of a retraining, kept with its run.

    Attributes:
        news: what was new since the champion's dataset; empty where it did not go on from a champion.
        measures: the new text beside the earlier one. skipped: the stages that were done before.
        stored: bytes of the training's checkpoints.
    """

    news: str = ""
    measures: list[Measure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    stored: int = 0


_NIGHT = TypeAdapter(Night)


@dataclass(frozen=True)
class SamplePair:
    """A prompt, how the champion before continued it, empty where there was none, and how the new model does."""

    prompt: str
    before: str
    now: str


@dataclass(frozen=True)
class Report:
    """One retraining.

    Attributes:
        sentence: what became of it. name: of its run. links: addresses by what they show.
        facts: numbers and names as a person reads them. changed: what differs from the preset, in words.
        decision: whether it serves, and why; None where no model was registered.
        champion: number of the version that it was compared with; empty where there was none.
        samples: of the champion before, and of the new model.
        night: what the pipeline kept; None where it kept nothing.
        losses: `train/loss` and `validation/loss` in nats per token, as (tokens, loss).
    """

    sentence: str
    name: str
    links: dict[str, str]
    facts: dict[str, str]
    changed: str
    decision: Decision | None
    champion: str
    samples: list[SamplePair]
    night: Night | None
    losses: dict[str, list[tuple[int, float]]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def log_night(link: RunLink, night: Night, *, already_done: bool) -> None:
    """Keep what only the pipeline knows with the run.

    Args:
        already_done: whether the training was: then what its own night kept stays.
    """
    with link.tracking.reached() as client:
        if not already_done or _NIGHT_FILE not in _names(client, link.run_id, None):
            client.log_dict(link.run_id, storage.with_digest(asdict(night)), _NIGHT_FILE)


def log_report(tracking: Tracking, run_id: str, page: str) -> None:
    """Keep the page with the run."""
    with tracking.reached() as client:
        client.log_text(run_id, page, REPORT_PAGE)


def has_report(tracking: Tracking, run_id: str) -> bool:
    """Whether the run keeps its report; so it is said of a run that a person removed, too."""
    with tracking.reached() as client:
        return REPORT_PAGE in (_names(client, run_id, None) or [REPORT_PAGE])


def stored_bytes(result: TrainResult) -> int:
    """What the checkpoints of a training take."""
    return sum(entry.size for entry in storage.list_files(result.training))


def report_of(tracking: Tracking, name: str, config: PipelineConfig | None = None) -> Report:
    """The report of a run.

    Args:
        name: id of a run, its beginning, its name, an alias, or models:/….
        config: whose model's aliases are meant; by default the usual one's.

    Raises:
        UserError: no run is called that, or several are.
    """
    with tracking.reached() as client:
        run = find_run(client, tracking, name, config)
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        version = max(versions, key=lambda each: int(each.version), default=None)
        if version is not None:  # a search tells no aliases
            version = client.get_model_version(version.name, version.version)
        before = _champion_before(client, version)
        link = RunLink(tracking, run.info.run_id, run.info.experiment_id)
        links = {"the run": link.url, "all runs": link.compare_url}
        if version is not None:
            links["the version"] = tracking.version_page(version.name, version.version)
        decision = decision_of(version) if version is not None and version.tags else None
        return Report(
            sentence=_sentence(version, run),
            name=str(run.info.run_name),
            links=links,
            facts={key: value for key, value in facts_of(run, None).items() if value != "–"},
            changed=run.data.tags.get(CHANGED_TAG, ""),
            decision=decision,
            champion=str(before.version) if before is not None else "",
            samples=_pairs(client, run, before),
            night=_night_of(client, run.info.run_id),
            losses=losses_of(client, run.info.run_id),
        )


def _sentence(version: Any, run: Run) -> str:
    if version is None:
        status = str(run.info.status).lower()
        why = run.data.tags.get(END_TAG, "") if status in ("failed", "killed") else ""
        told = f"the training is {status}" + (f": {why}" if why else "")
        return "no model is registered" if status == "finished" else told
    reason = version.tags.get(DECISION_TAG, "nothing was decided yet")
    alias = f" ({', '.join(version.aliases)} now)" if version.aliases else ""
    return f"{MODELS}{version.name}/{version.version}{alias}: {reason}"


def _champion_before(client: MlflowClient, version: Any) -> Any:
    """The version that this one was compared with; None where there was none, or a person removed it."""
    from mlflow.exceptions import MlflowException

    number = version.tags.get(COMPARED_TAG, "") if version is not None else ""
    if not number:
        return None
    try:
        return client.get_model_version(version.name, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _pairs(client: MlflowClient, run: Run, before: Any) -> list[SamplePair]:
    now = _samples(client, run.info.run_id)
    earlier = _samples(client, before.run_id) if before is not None and before.run_id else {}
    return [SamplePair(prompt, earlier.get(prompt, ""), text) for prompt, text in list(now.items())[:_MOST_SAMPLES]]


def _samples(client: MlflowClient, run_id: str) -> dict[str, str]:
    """Continuations of the newest samples by their prompts; none where the run has none, or is gone."""
    table = _artifact(client, run_id, max(_names(client, run_id, "samples"), default=""))
    columns = table.get("columns", []) if isinstance(table, dict) else []
    if not {"prompt", "continuation"} <= set(columns):
        return {}
    prompt, text, rows = columns.index("prompt"), columns.index("continuation"), table.get("data")
    if not isinstance(rows, list):
        return {}
    return {str(row[prompt]): str(row[text]) for row in rows if isinstance(row, list) and len(row) == len(columns)}


def _night_of(client: MlflowClient, run_id: str) -> Night | None:
    kept = _artifact(client, run_id, _NIGHT_FILE if _NIGHT_FILE in _names(client, run_id, None) else "")
    if kept is None:
        return None
    if not isinstance(kept, dict) or not storage.is_as_written(kept):
        log.warning("report: %s of run %s is damaged: it is not what its digest says", _NIGHT_FILE, run_id[:8])
        return None
    try:
        return _NIGHT.validate_python(kept)
    except ValidationError as error:
        log.warning("report: %s of run %s is of another version: %s", _NIGHT_FILE, run_id[:8], error.errors()[0]["msg"])
        return None


def _names(client: MlflowClient, run_id: str, folder: str | None) -> Sequence[str]:
    from mlflow.exceptions import MlflowException

    try:
        return [item.path for item in client.list_artifacts(run_id, folder)]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


def _artifact(client: MlflowClient, run_id: str, name: str) -> Any:
    """A JSON file of a run; None where there is none, or, with a warning, where it is damaged."""
    if not name:
        return None
    with storage.passing_folder() as folder:
        content = Path(client.download_artifacts(run_id, name, str(folder))).read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        log.warning("report: %s of run %s is damaged: %s", name, run_id[:8], error)
        return None
