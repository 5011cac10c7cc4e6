"""The nights of a period: which versions were made, which of them became champion, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gptpipe.evaluation.confidence import Comparison
from gptpipe.tracking.announcement import ANNOUNCED_TAG, PROMOTED
from gptpipe.tracking.client import TRAINING_TAG, RunLink, Tracking
from gptpipe.tracking.references import runs_of
from gptpipe.tracking.registry import DECISION_TAG, ROLLED_BACK_TAG, WAITS_TAG, comparison_of
from gptpipe.tracking.results import DECIDING
from gptpipe.wording import counted, duration

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Entry:
    """One retraining of a period, or one that ended without a training.

    Attributes:
        began: seconds since 1970. name: of its run. url: its page. verdict: champion, kept, rolled back, skipped,
            failed, … reason: in a sentence.
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
    def date(self) -> str:
        return datetime.fromtimestamp(self.began, UTC).strftime("%Y-%m-%d %H:%M")

    @property
    def difference(self) -> str:
        """From the champion of that night, with its 95 % interval; empty where it was held against none."""
        if self.comparison is None:
            return ""
        interval = self.comparison.interval
        sure = f" ({interval.low:+.4f} to {interval.high:+.4f})" if interval else ""
        unit = " per byte" if self.comparison.unit == "byte" else ""
        return f"{self.comparison.difference:+.4f}{unit}{sure}"


@dataclass(frozen=True)
class History:
    """The nights of a period of one registered model, oldest first."""

    model: str
    since: float
    entries: tuple[Entry, ...]

    @property
    def sentence(self) -> str:
        """How many nights there were, what became of them, and what they cost."""
        begin = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d")
        counts: dict[str, int] = {}
        for entry in self.entries:
            counts[entry.verdict] = counts.get(entry.verdict, 0) + 1
        told = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
        hours = sum(entry.device_hours for entry in self.entries)
        seconds = sum(entry.seconds for entry in self.entries)
        cost = f"; {hours:.3g} device hours, {duration(seconds)} of training" if hours else ""
        nights = counted(len(self.entries), "retraining")
        return f"{self.model} since {begin}: {nights}" + (f" ({told}){cost}" if told else "")

    def as_dict(self) -> dict[str, Any]:
        return {"sentence": self.sentence, **asdict(self)}


def history(tracking: Tracking, model: str, since: float, others: Sequence[Entry] = ()) -> History:
    """The retrainings of a period.

    Args:
        model: name of the registered model. since: seconds since 1970.
        others: nights that did not end well, or without a training, as Prefect knows them.

    Raises:
        UserError: MLflow does not answer.
    """
    with tracking.reached() as client:
        experiment = tracking.experiment_id(client)
        began = f"attributes.start_time >= {int(since * 1000)}"
        runs = [run for run in runs_of(client, [experiment], began) if TRAINING_TAG in run.data.tags]
        # a filter knows no quotation mark within quotation marks
        like = model.replace("'", "_")
        versions = {
            version.run_id: version
            for version in client.search_model_versions(f"name LIKE '{like}'", 1000, ["version_number ASC"])
            if version.name == model
        }
    reasons = {entry.flow_run: entry.reason for entry in others}
    trained = [_entry(tracking, run, versions.get(run.info.run_id), reasons) for run in runs]
    known = {entry.flow_run for entry in trained}
    entries = [*trained, *(entry for entry in others if entry.flow_run not in known)]
    return History(model, since, tuple(sorted(entries, key=lambda entry: entry.began)))


def _entry(tracking: Tracking, run: Run, version: Any, reasons: Mapping[str, str]) -> Entry:
    """A run's night.

    Args:
        reasons: why flow runs did not end well, by their ids.
    """
    metrics, tags = run.data.metrics, run.data.tags
    status = str(run.info.status).lower()
    verdict, reason = status, ""
    if version is not None:
        reason = version.tags.get(DECISION_TAG, "")
        verdict = "champion" if version.tags.get(ANNOUNCED_TAG) == PROMOTED else "kept"
        verdict = "waits" if WAITS_TAG in version.tags else verdict
        if ROLLED_BACK_TAG in version.tags:
            verdict, reason = "rolled back", f"rolled back {version.tags[ROLLED_BACK_TAG]}"
    else:
        flow_run = tags.get("prefect.flow_run_id", "")
        verdict, reason = "not registered" if status == "finished" else status, reasons.get(flow_run, "")
    return Entry(
        began=run.info.start_time / 1000,
        name=str(run.info.run_name),
        url=RunLink(tracking, run.info.run_id, run.info.experiment_id).url,
        verdict=verdict,
        reason=reason,
        version=str(version.version) if version is not None else "",
        loss=metrics.get(DECIDING),
        comparison=comparison_of(version) if version is not None else None,
        device_hours=metrics.get("train/device_hours", 0.0),
        seconds=metrics.get("train/active_seconds", 0.0),
        flow_run=tags.get("prefect.flow_run_id", ""),
    )
