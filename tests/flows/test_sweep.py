"""Sweeps as a person runs them: real trainings, a real Prefect server, a process that is really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from gptpipe.config import PipelineConfig, SweepConfig
from gptpipe.config.settings import reload_settings, settings
from gptpipe.sweep.plan import Plan
from gptpipe.tracking.client import TRAINING_TAG, Tracking
from gptpipe.tracking.references import References, folder_name
from gptpipe.tracking.sweeps import PARENT_TAG, SWEEP_TAG
from tests.fixtures.trainings import kill
from tests.flows.test_retrain import GPTPIPE, ask

TINY = {
    "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "context_length": 32},
    "train": {
        "steps": 60,
        "batch_size": 4,
        "warmup_steps": 2,
        "validate_every": 20,
        "validate_tokens": 512,
        "checkpoint_every": 5,
        "log_every": 1,
        "precision": "float32",
        "threads": 1,
    },
    "sample": {"max_new_tokens": 8},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        (folder / f"{i:02}.py").write_text("\n".join(f"def f{i}_{j}(x):\n    return x + {i * j}" for j in range(30)))
    (folder.parent / "tiny.yaml").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(autouse=True)
def server(database: None, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    reload_settings()
    return prefect_api


def start(corpus: Path, *words: str, command: str = "sweep", file: Path | None = None) -> subprocess.Popen[str]:
    config = str(file or corpus.parent / "tiny.yaml")
    whole = [GPTPIPE, command, "--config", config, "--corpus", str(corpus), "--json", *words]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=corpus.parent)


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    answer: dict[str, Any] = json.loads(out)
    return answer, err


def runs() -> tuple[MlflowClient, list[Run], list[Run]]:
    """MLflow, the sweeps' runs and those of their trainings."""
    tracking = Tracking.of(settings())
    client = tracking.connect()
    everything = list(client.search_runs([tracking.experiment_id(client)]))
    parents = [run for run in everything if SWEEP_TAG in run.data.tags]
    return client, parents, [run for run in everything if PARENT_TAG in run.data.tags]


def trainings() -> dict[str, bool]:
    """Those that have a whole checkpoint, and whether they have ended."""
    store = Path(os.environ["GPTPIPE_HOME"]) / "storage" / "trainings"
    saved = {file.parents[1] for file in store.glob("*/step-*/manifest.json")}
    return {str(folder): (folder / "outcome.json").exists() for folder in saved}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_repeats_no_finished_training(corpus: Path) -> None:
    words = ["--method", "grid", "--search", "train.seed=1,2", "--set", "train.steps=400"]
    process = start(corpus, *words)
    until = time.monotonic() + 200
    while sorted(trainings().values()) != [False, True]:  # one is done, the other has saved
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    (finished,) = [folder for folder, has_ended in trainings().items() if has_ended]
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(family, timeout=30)
    kill([each for each in family if each.is_running()])
    assert sorted(trainings().values()) == [False, True], "the second one was done too early"
    times = {file: file.stat().st_mtime_ns for file in Path(finished).rglob("*") if file.is_file()}
    _, (parent,), children = runs()
    assert parent.info.status == "RUNNING"
    kept = References.of(Tracking.of(settings())).trainings
    assert {folder_name(folder) for folder in trainings()} <= kept
    answer, log = finish(start(corpus, *words))
    assert "going on from step" in log
    assert log.count("training from the first step") == 0
    assert {file: file.stat().st_mtime_ns for file in Path(finished).rglob("*") if file.is_file()} == times
    assert [(row["number"], row["state"], row["steps"]) for row in answer["trials"]] == [
        (0, "finished", 400),
        (1, "finished", 400),
    ]
    client, (same,), children = runs()
    assert same.info.run_id == parent.info.run_id == answer["run_id"]
    named = {run.info.run_name for run in children}
    assert named == {f"seed={seed} · trial {seed - 1} · {answer['name']}" for seed in (1, 2)}
    assert {run.info.status for run in (same, *children)} == {"FINISHED"}
    for run in children:
        assert run.data.tags[PARENT_TAG] == parent.info.run_id
        steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))
        assert steps == Counter(range(1, 401))
    again, log = finish(start(corpus, *words))
    assert again == answer
    assert "training from" not in log


@pytest.mark.slow
def test_halving_stops_a_real_training_that_could_go_on(corpus: Path, server: str) -> None:
    search = "train.learning_rate=1e-2,1e-6"
    base = PipelineConfig.model_validate(TINY)
    seeds = [seed for seed in range(20) if _first_rate(base, search, seed) == 1e-2]
    words = ["--search", search, "--seed", str(seeds[0]), "--name", "rates", "--set", "train.steps=180"]
    answer, log = finish(start(corpus, *words))
    assert "validated, saved and judged every 23 steps in place of train.validate_every" in log
    good, bad = answer["trials"]
    assert (good["state"], good["steps"], bad["state"]) == ("finished", 180, "pruned")
    assert 23 <= bad["steps"] < 180
    assert (Path(bad["training"]) / f"step-{bad['steps']:08d}" / "manifest.json").exists()
    assert answer["best"]["parameters"] == {"train.learning_rate": 1e-2}
    assert answer["best"]["config"]["train"]["learning_rate"] == 1e-2
    client, (parent,), children = runs()
    by_trial = {run.data.tags["trial"]: run for run in children}
    assert (by_trial["0"].info.status, by_trial["0"].data.tags["pruned"]) == ("FINISHED", "false")
    assert (by_trial["1"].info.status, by_trial["1"].data.tags["pruned"]) == ("KILLED", "true")
    assert by_trial["1"].data.tags[TRAINING_TAG] == bad["training"]
    assert good["loss"] == pytest.approx(min(_losses(client, by_trial["0"])))
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"trials.json", "parallel-coordinates.png", "importances.json", "best.yaml"}
    assert parent.data.params["train.learning_rate"] == "1e-2,1e-6"
    assert "sweep/best_loss" in parent.data.metrics
    assert answer["sentence"] in parent.data.tags["mlflow.note.content"]
    pages = [found["data"] for found in ask(server, "/artifacts/filter") if found["key"] == "sweep"]
    assert any(answer["sentence"] in page and "data:image/png;base64," in page for page in pages)
    refused = start(corpus, *words, "--set", "train.batch_size=8")
    error = json.loads(refused.communicate(timeout=900)[0])["error"]
    assert (refused.returncode, error["where"]) == (2, "sweep.name=rates")


@pytest.mark.slow
def test_trainings_side_by_side_and_the_file_of_the_best_one_names_a_training_that_is_done(corpus: Path) -> None:
    words = ["--method", "grid", "--search", "model.n_embd=16,17,32", "--parallel", "2"]
    answer, _ = finish(start(corpus, *words))
    states = {row["parameters"]["model.n_embd"]: row["state"] for row in answer["trials"]}
    assert states == {16: "finished", 17: "failed", 32: "finished"}
    (failed,) = [row for row in answer["trials"] if row["state"] == "failed"]
    assert "not a multiple of n_head" in failed["reason"]
    both = [run for run in runs()[2] if run.info.status == "FINISHED"]
    assert max(run.info.start_time for run in both) < min(run.info.end_time for run in both)
    file = corpus.parent / "best.yaml"
    file.write_text(answer["yaml"])
    result, _ = finish(start(corpus, command="run", file=file))
    assert result["training"]["already_done"]
    assert result["training"]["training"] == answer["best"]["training"]


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["--search", "train.learning_rat=1,2"], "search train.learning_rat", "unknown key"),
        (["--search", "train.nproc=1,2"], "search train.nproc", "does not change"),
        (["--search", "train.learning_rate=1e-4..1e-2", "--method", "grid"], "search train.learning_rate", "no end"),
        (["--method", "best", "--search", "train.seed=1,2"], "method", "asha"),
        ([], "sweep.search", "nothing is searched"),
    ],
)
def test_what_cannot_be_swept_ends_with_a_line(corpus: Path, words: list[str], where: str, what: str) -> None:
    process = start(corpus, *words)
    out, err = process.communicate(timeout=900)
    error = json.loads(out)["error"]
    assert process.returncode == 2
    assert where in error["where"]
    assert what in error["message"]
    assert error["hint"]
    assert "Traceback" not in err


def _first_rate(base: PipelineConfig, search: str, seed: int) -> float:
    values = Plan.of(base, SweepConfig(search=[search], seed=seed)).listed(0)
    assert values is not None
    return float(values["train.learning_rate"])


def _losses(client: MlflowClient, run: Run) -> list[float]:
    return [point.value for point in client.get_metric_history(run.info.run_id, "validation/loss")]
