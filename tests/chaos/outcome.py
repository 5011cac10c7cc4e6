"""What a run leaves behind, and how that differs from what an undisturbed one leaves."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from gptpipe import storage

# the rest of what is logged is of the machine and the hour
_CURVES = ("train/loss", "train/grad_norm", "train/learning_rate", "validation/loss", "validation/perplexity")
_PARTS = (".partial", ".part", ".tmp", ".temp", ".incomplete")
_UNENDED = ("RUNNING", "PENDING", "CANCELLING")


@dataclass(frozen=True)
class Traces:
    """Where a run has left what it made.

    Attributes:
        store: folder or URL. tracking: URI of MLflow. experiment, model: names there, of this run alone.
    """

    store: str
    tracking: str
    experiment: str
    model: str

    def outcome(self) -> dict[str, Any]:
        """All that must be the same whatever happened on the way, by name."""
        files = {entry.path: entry.url for entry in storage.list_files(self.store)}
        names = {path for path in files if not path.startswith("mlflow/")}
        steps = {path.rpartition("/")[0] for path in names if "/step-" in path}
        last = tuple(f"{training}/{max(those)}/" for training, those in _by_training(steps).items())
        scores = [json.loads(storage.read_bytes(files[path])) for path in sorted(names) if _is_in(path, "evaluations")]
        samples = [json.loads(storage.read_bytes(files[path])) for path in sorted(names) if _is_in(path, "samples")]
        return {
            "dataset": {path: _hash(files[path]) for path in sorted(names) if _is_shard(path)},
            "weights and moments": {path: _hash(files[path]) for path in sorted(names) if _is_tensor(path, last)},
            "finished trainings": sorted(path for path in names if path.endswith("/outcome.json")),
            "checkpoints without a manifest": sorted(step for step in steps if f"{step}/manifest.json" not in names),
            "parts of files": sorted(path for path in files if any(word in path for word in _PARTS)),
            "evaluations": [(score["cross_entropy"], score["tokens"], score["bytes"]) for score in scores],
            "samples": sorted(json.dumps([each["tokens"] for each in sample["samples"]]) for sample in samples),
            **dict(self._tracked()),
        }

    def _tracked(self) -> Iterator[tuple[str, Any]]:
        """The training's runs in MLflow, their curves, and what is registered."""
        client = MlflowClient(tracking_uri=self.tracking)
        experiment = client.get_experiment_by_name(self.experiment)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        yield "runs", sorted(run.info.status for run in runs)
        for name in _CURVES:
            histories = [client.get_metric_history(run.info.run_id, name) for run in runs]
            yield f"curves of {name}", sorted([(point.step, point.value) for point in each] for each in histories)
        versions = client.search_model_versions(f"name='{self.model}'")
        yield "versions", sorted(int(version.version) for version in versions)
        for tag in ("decision", "compared_with", "waits", "refused", "rolled_back"):
            yield f"tags {tag}", {version.version: version.tags.get(f"gptpipe.{tag}") for version in versions}
        model = client.get_registered_model(self.model) if versions else None
        yield "aliases", dict(model.aliases) if model else {}
        yield "an unfinished move", dict(model.tags) if model else {}


def differences(mine: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """A line for each thing that is not the same."""
    return [
        f"{name}: {_short(mine.get(name))} in place of {_short(reference[name])}"
        for name in reference
        if mine.get(name) != reference[name]
    ]


def unended_flow_runs(database: Path) -> int:
    """How many flow runs Prefect's SQLite database takes for running."""
    with closing(sqlite3.connect(database)) as connection:
        states = Counter(state for (state,) in connection.execute("select state_type from flow_run"))
    return sum(states[name] for name in _UNENDED)


def _hash(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/") and path.endswith(".json")


def _is_shard(path: str) -> bool:
    return path.startswith("datasets/") and path.endswith(".parquet") and "/." not in path


def _by_training(steps: set[str]) -> dict[str, list[str]]:
    """The names of the steps below each training's folder."""
    trainings: dict[str, list[str]] = {}
    for step in steps:
        training, _, name = step.rpartition("/")
        trainings.setdefault(training, []).append(name)
    return trainings


def _is_tensor(path: str, steps: tuple[str, ...]) -> bool:
    return path.startswith(steps) and path.endswith(".safetensors")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 300 else f"{text[:300]}…"
