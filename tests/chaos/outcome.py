"""What a run leaves behind, and how that differs from what an undisturbed one leaves."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.chaos.alone import SETTINGS, Alone

# the rest is of the machine and the hour
_CURVES = ("train/loss", "train/grad_norm", "train/learning_rate", "validation/loss", "validation/perplexity")
_UNENDED = ("RUNNING", "PENDING", "CANCELLING")


def outcome(run: Alone, home: Path | None = None) -> dict[str, Any]:
    """All that must be the same whatever happened on the way, by name.

    Args:
        home: where its home is now.
    """
    home = home or run.home
    answer = run.tries[-1].answer
    store = home / "storage"
    last = next(store.glob(f"trainings/*/step-{int(SETTINGS['train.steps']):08d}"), store)
    steps = store.glob("trainings/*/step-*")
    scores, samples = answer.get("evaluation", {}), answer.get("samples", {}).get("samples", [])
    found: dict[str, Any] = {
        "datasets": dict(_contents(store / "datasets", ".parquet")),
        "weights and moments": dict(_contents(last, ".safetensors")),
        "checkpoints without a manifest": sorted(step.name for step in steps if not (step / "manifest.json").exists()),
        "parts of files": sorted(str(file.relative_to(home)) for file in home.rglob("*") if _is_part(file)),
        "temporary folder": sorted(file.name for file in run.temporary.iterdir()),
        "evaluation": {name: scores.get(name) for name in ("cross_entropy", "perplexity", "tokens")},
        "samples": [sample["text"] for sample in samples],
        "model": {name: answer.get("model", {}).get(name) for name in ("version", "champion", "decision")},
    }
    return found | dict(_tracked(home / "mlflow.db"))


def differences(mine: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """A line for each thing that is not the same."""
    return [
        f"{name}: {_short(mine.get(name))} in place of {_short(reference[name])}"
        for name in reference
        if mine.get(name) != reference[name]
    ]


def unended_flow_runs(home: Path) -> int:
    """How many flow runs Prefect still takes for running."""
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        states = Counter(state for (state,) in database.execute("select state_type from flow_run"))
    return sum(states[name] for name in _UNENDED)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 300 else f"{text[:300]}…"


def _contents(folder: Path, ending: str) -> Iterator[tuple[str, str]]:
    """Files below a folder and the hashes of their bytes."""
    for file in sorted(folder.rglob(f"*{ending}")):
        if file.is_file() and not file.name.startswith("."):
            yield str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()


def _is_part(file: Path) -> bool:
    return file.is_file() and any(word in file.name for word in (".partial", ".part", ".tmp", ".temp", ".incomplete"))


def _tracked(database: Path) -> Iterator[tuple[str, Any]]:
    """The training's runs in MLflow, their curves, and what is registered."""
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    yield "runs", sorted(run.info.status for run in runs)
    for name in _CURVES:
        history = client.get_metric_history(runs[0].info.run_id, name) if runs else []
        yield f"curve {name}", [(point.step, point.value) for point in history]
    models = client.search_registered_models()
    yield "aliases", [dict(model.aliases) for model in models]
    yield "versions", sorted(version.version for version in client.search_model_versions())
