"""The nights of a period: which versions were made, which of them became champion, and by how much; and its sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gptpipe.evaluation.confidence import Comparison
from gptpipe.tracking.announcement import PROMOTED
from gptpipe.tracking.client import TRAINING_TAG, RunLink, Tracking
from gptpipe.tracking.follow import END_TAG
from gptpipe.tracking.moves import ANNOUNCED_TAG, DECISION_TAG, ROLLED_BACK_TAG, WAITS_TAG, version_called
from gptpipe.tracking.references import runs_of
from gptpipe.tracking.registry import comparison_of
from gptpipe.tracking.results import DECIDING
from gptpipe.tracking.sweeps import PARENT_TAG, SWEEP_TAG
from gptpipe.wording import counted, duration

if TYPE_CHECKING:
    from mlflow.entities import Run

_CHAMPION, _FORMER, _ROLLED_BACK, _SWEEP = "champion", "former champion", "rolled back", "sweep"
# how decisions begin, or go on, that a person made after the announcement
_APPROVED, _AGAIN = "approved by a person", " again by a rollback from version "


@dataclass(frozen=True)
class Entry:
    """One retraining of a period, or one that ended without a training, or a sweep.

    Attributes:
        began: seconds since 1970. name: of its run, or of the sweep. url: its page.
        verdict: champion (it serves), former champion, rolled back, kept, waits, not registered, skipped, failed,
            sweep, …
        reason: in a sentence.
        version: number of the registered version; empty where there is none.
        loss: nats per token on the text of its own night; None where it was not scored.
        comparison: with the champion of that night, on the same documents; None where there was none.
        device_hours: of its training. seconds: of its steps. flow_run: Prefect's id; empty where it is not known.
    """

    began: float
    name: str
    url: str
    verdict: str
    reason: str
    version: str = ""
    loss: float | None = None
    comparison: Comparison | None = None
    device_hours: float = 0.0
    seconds: float = 0.0
    flow_run: str = ""

    @property
    def became_champion(self) -> bool:
        """Whether it served once, or does."""
        return self.verdict in (_CHAMPION, _FORMER, _ROLLED_BACK)

    @property
    def is_sweep(self) -> bool:
        return self.verdict == _SWEEP

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.began, UTC).strftime("%Y-%m-%d %H:%M")

    @property
    def difference(self) -> str:
        """From the champion of that night, with its 95 % interval; empty where it was compared with none."""
        if self.comparison is None:
            return ""
        interval = self.comparison.interval
        sure = f" ({interval.low:+.4f} to {interval.high:+.4f})" if interval else ""
        unit = " per byte" if self.comparison.unit == "byte" else ""
        return f"{self.comparison.difference:+.4f}{unit}{sure}"


@dataclass(frozen=True)
class History:
    """The nights of a period of one registered model, and the experiment's sweeps, oldest first."""

    model: str
    since: float
    entries: tuple[Entry, ...]

    @property
    def sentence(self) -> str:
        """How many nights and sweeps there were, what became of the nights, and what all of them cost."""
        begin = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d")
        nights = [entry.verdict for entry in self.entries if not entry.is_sweep]
        sweeps = len(self.entries) - len(nights)
        told = ", ".join(f"{number} {verdict}" for verdict, number in Counter(nights).items())
        hours = sum(entry.device_hours for entry in self.entries)
        seconds = sum(entry.seconds for entry in self.entries)
        cost = f"; {hours:.3g} device hours, {duration(seconds)} of training" if hours else ""
        retrained = counted(len(nights), "retraining") + (f" ({told})" if told else "")
        more = f", {counted(sweeps, 'sweep')}" if sweeps else ""
        return f"{self.model} since {begin}: {retrained}{more}{cost}"

    def as_dict(self) -> dict[str, Any]:
        return {"sentence": self.sentence, **asdict(self)}


def history(
    tracking: Tracking, model: str, since: float, others: Sequence[Entry] = (), alias: str = "champion"
) -> History:
    """The retrainings of a period, and its sweeps: the trainings of one are told as one.

    Args:
        model: name of the registered model. since: seconds since 1970.
        others: nights that did not end well, or without a training, as Prefect knows them.
        alias: of the version that serves.

    Raises:
        UserError: MLflow does not answer.
    """
    with tracking.reached() as client:
        experiment = tracking.experiment_id(client)
        began = f"attributes.start_time >= {int(since * 1000)}"
        runs = runs_of(client, [experiment], began)
        champion = version_called(client, model, alias)
        # a filter knows no quotation mark within quotation marks
        like = model.replace("'", "_")
        versions = {
            version.run_id: version
            for version in client.search_model_versions(f"name LIKE '{like}'", 1000, ["version_number ASC"])
            if version.name == model
        }
    reasons = {entry.flow_run: entry.reason for entry in others}
    serves = str(champion.version) if champion is not None else ""
    trained = [_entry(tracking, run, versions.get(run.info.run_id), serves, reasons) for run in runs if _is_night(run)]
    known = {entry.flow_run for entry in trained}
    sweeps = [_sweep(tracking, run, runs) for run in runs if SWEEP_TAG in run.data.tags]
    entries = [*trained, *sweeps, *(entry for entry in others if entry.flow_run not in known)]
    return History(model, since, tuple(sorted(entries, key=lambda entry: entry.began)))


def _is_night(run: Run) -> bool:
    """Whether it is a training of its own, and not one of a sweep."""
    return TRAINING_TAG in run.data.tags and PARENT_TAG not in run.data.tags


def _entry(tracking: Tracking, run: Run, version: Any, serves: str, reasons: Mapping[str, str]) -> Entry:
    """A run's night.

    Args:
        serves: number of the version that serves. reasons: why flow runs did not end well, by their ids.
    """
    flow_run = run.data.tags.get("prefect.flow_run_id", "")
    verdict, reason = _unregistered(run, reasons.get(flow_run, "")) if version is None else _became(version, serves)
    return Entry(
        began=run.info.start_time / 1000,
        name=str(run.info.run_name),
        url=RunLink(tracking, run.info.run_id, run.info.experiment_id).url,
        verdict=verdict,
        reason=reason,
        version=str(version.version) if version is not None else "",
        loss=run.data.metrics.get(DECIDING),
        comparison=comparison_of(version) if version is not None else None,
        device_hours=run.data.metrics.get("train/device_hours", 0.0),
        seconds=run.data.metrics.get("train/active_seconds", 0.0),
        flow_run=flow_run,
    )


def _unregistered(run: Run, reason: str) -> tuple[str, str]:
    """What a training without a version came to, and why.

    Args:
        reason: of its flow run, where that is known.
    """
    status = str(run.info.status).lower()
    if status in ("failed", "killed"):
        return status, reason or run.data.tags.get(END_TAG, "")
    return "not registered" if status == "finished" else status, reason


def _became(version: Any, serves: str) -> tuple[str, str]:
    """What became of a version up to now, and why."""
    tags = version.tags
    reason = tags.get(DECISION_TAG, "")
    if str(version.version) == serves:
        return _CHAMPION, reason
    if ROLLED_BACK_TAG in tags:
        return _ROLLED_BACK, f"rolled back {tags[ROLLED_BACK_TAG]}"
    if WAITS_TAG in tags:
        return "waits", reason
    by_a_person = reason.startswith(_APPROVED) or _AGAIN in reason
    return _FORMER if by_a_person or tags.get(ANNOUNCED_TAG) == PROMOTED else "kept", reason


def _sweep(tracking: Tracking, run: Run, runs: Sequence[Run]) -> Entry:
    """A sweep, and what its trainings cost together.

    Args:
        runs: of the period.
    """
    trials = [each.data.metrics for each in runs if each.data.tags.get(PARENT_TAG) == run.info.run_id]
    best, status = run.data.metrics.get("sweep/best_loss"), str(run.info.status).lower()
    told = [counted(len(trials), "training")]
    told += [f"best loss {best:.4f} nats per token"] if best is not None else []
    return Entry(
        began=run.info.start_time / 1000,
        name=run.data.tags[SWEEP_TAG],
        url=RunLink(tracking, run.info.run_id, run.info.experiment_id).url,
        verdict=_SWEEP,
        reason=", ".join([*told, *([status] if status != "finished" else [])]),
        device_hours=sum(each.get("train/device_hours", 0.0) for each in trials),
        seconds=sum(each.get("train/active_seconds", 0.0) for each in trials),
    )
