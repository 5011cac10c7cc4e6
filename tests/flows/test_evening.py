"""A new user's evening, from the first `up` to the last: nights, new text, buttons, a cancel, a kill, `down`, `up`.

With EVENING_PICTURES set to a folder, what the browser sees is kept there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.fixtures.browser import CHROMIUM, Browser, browser
from tests.fixtures.place import Place, folder_for_all, stack_in, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow]

SHAPE = {"n_layer": 1, "n_embd": 32, "n_head": 2, "context_length": 32}
TRAIN = {
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "validate_every": 20,
    "validate_tokens": 2048,
    "checkpoint_every": 20,
    "log_every": 10,
    "precision": "float32",
}
SMALL = {"preset": "nano", "model": SHAPE, "train": TRAIN, "sample": {"max_new_tokens": 24}}


def write_notes(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        words = " ".join(f"note {number} says {(number * j) % 13} of {j % 7}" for j in range(40))
        (folder / f"{number}.txt").write_text(words)


@pytest.fixture
def place() -> Iterator[Place]:
    with folder_for_all("evening") as folder:
        write_notes(folder / "notes", range(60))
        given = {"data": {"corpus": [str(folder / "notes")], "validation": 0.3}, **SMALL}
        (folder / "retrain.yaml").write_text(yaml.safe_dump(given))
        with stack_in(
            folder, GPTPIPE_RETRAIN_CONFIG=str(folder / "retrain.yaml"), GPTPIPE_NIGHTLY_CRON="*/2 * * * *"
        ) as place:
            yield place


def press(place: Place, **train: Any) -> str:
    corpus = [{"url": str(place.folder / "notes")}]
    data = {"corpus": corpus, "validation": 0.3}
    return place.press_run("retrain/on-demand", **{**SMALL, "data": data, "train": {**TRAIN, **train}})


def nights(place: Place) -> list[dict[str, Any]]:
    """The schedule's runs that have begun, the first one first."""
    asked = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC"}
    return [run for run in place.prefect("flow_runs/filter", asked) if run["auto_scheduled"] and run["start_time"]]


def picture(page: Browser, name: str) -> None:
    if folder := os.environ.get("EVENING_PICTURES"):
        page.run("() => document.querySelector('[aria-label=\"Close\"]')?.click()")  # MLflow's assistant
        time.sleep(3)  # charts are drawn in motion
        page.picture(Path(folder) / f"{name}.png")


def press_with_the_form(place: Place, page: Browser, **values: str) -> str:
    """Fill the form of the UI that opens first, and press its button; the run's id."""
    made = place.deployments()["retrain/on-demand"]["id"]
    known = {run["id"] for run in place.prefect("flow_runs/filter", {})}
    page.open(f"http://127.0.0.1:{place.ports['PREFECT']}/v2/deployments/deployment/{made}/run")
    page.wait_for("Learning rate")
    time.sleep(2)
    for label, text in values.items():
        selector = page.run(
            """label => {
              const of = [...document.querySelectorAll('label')].find(each => each.textContent.startsWith(label));
              const fields = [...document.querySelectorAll('input, textarea')];
              const field = fields.find(each => of.compareDocumentPosition(each) & Node.DOCUMENT_POSITION_FOLLOWING);
              field.setAttribute('data-filled', label);
              return `[data-filled="${label}"]`;
            }""",
            label,
        )
        page.type(selector, text)
    picture(page, "button")
    page.click("Submit")
    fresh: list[str] = []

    def started() -> bool:
        runs = place.prefect("flow_runs/filter", {"deployments": {"id": {"any_": [made]}}})
        fresh[:] = [run["id"] for run in runs if run["id"] not in known]
        return bool(fresh)

    wait_until(started, 60, "a run that the form started")
    return fresh[0]


def mlflow_runs(place: Place) -> list[Any]:
    client = MlflowClient(f"http://127.0.0.1:{place.ports['MLFLOW']}")
    experiments = [each.experiment_id for each in client.search_experiments() if each.name != "Default"]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the form is filled by a browser")
def test_an_evening(place: Place, tmp_path: Path) -> None:
    # two nights: the second on more text
    wait_until(lambda: nights(place), 180, "the first night")
    first = nights(place)[0]["id"]
    place.wait_for(first, "COMPLETED", 180)
    write_notes(place.folder / "notes", range(60, 90))
    seen = len(nights(place))
    wait_until(lambda: len(nights(place)) > seen, 180, "the night after")
    second = nights(place)[seen]["id"]
    place.wait_for(second, "COMPLETED", 180)
    assert place.state(first)["message"].startswith("60 steps; cross-entropy ")
    # sixty steps on more text are no worse: it is told which way, and why
    decided = r"version 2 (promoted: better|not promoted: not surely better): "
    assert re.search(decided, place.state(second)["message"])

    # the schedule is paused in the UI, and `up` leaves it so
    nightly = place.deployments()["retrain/nightly"]
    for one in nightly["schedules"]:
        place.prefect(f"deployments/{nightly['id']}/schedules/{one['id']}", {"active": False}, method="PATCH")
    done = place.call("up")
    assert done.returncode == 0, done.stderr
    assert "is paused in the UI" in done.stderr + done.stdout

    with browser(tmp_path / "profile") as page:
        # a button with a wrong value, and with right ones
        place.since = datetime.now(UTC)
        wrong = press_with_the_form(place, page, **{"Init": "/nowhere/at-all"})
        message = place.wait_for(wrong, "FAILED", 90)["message"]
        assert "/nowhere/at-all" in message
        wait_until(lambda: [line for line in place.lines() if line["level"] >= logging.ERROR], 30, "an ERROR line")
        assert len([line for line in place.lines() if line["level"] >= logging.ERROR]) == 1
        page.open(f"http://127.0.0.1:{place.ports['PREFECT']}/v2/runs/flow-run/{wrong}")
        page.wait_for("/nowhere/at-all")
        picture(page, "failed")
        right = press_with_the_form(place, page, **{"Learning rate": "0.003"})
        place.wait_for(right, "COMPLETED", 180)
        assert "lr=0.003" in place.prefect(f"flow_runs/{right}")["name"]

        # one is cancelled, and the rank of another is killed
        long = press(place, steps=100_000, validate_every=0)
        place.wait_for_step(20, 100_000)
        place.cancel(long)
        place.wait_for(long, "CANCELLED", 90)
        killed = press(place, steps=1500, checkpoint_every=100, validate_every=0)
        place.wait_for_step(300, 1500)
        (rank,) = place.ranks().values()
        rank.kill()
        place.wait_for(killed, "COMPLETED", 400)
        picture_of_runs(place, page)

    assert place.call("down").returncode == 0
    assert place.processes() == {}
    done = place.call("up")
    assert done.returncode == 0, done.stderr

    # nothing is wrong at its end, and MLflow says which is better and what it cost
    checks = json.loads(place.call("doctor", "--json").stdout)["checks"]
    assert not [check for check in checks if check["ok"] is False], checks
    for log in (place.folder / ".gptpipe" / "stack" / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log
    types = {run["id"]: run["state"]["type"] for run in place.prefect("flow_runs/filter", {})}
    assert {run: types[run] for run in (first, second, wrong, right, long, killed)} == {
        first: "COMPLETED",
        second: "COMPLETED",
        wrong: "FAILED",
        right: "COMPLETED",
        long: "CANCELLED",
        killed: "COMPLETED",
    }
    assert set(types.values()) <= {"COMPLETED", "FAILED", "CANCELLED", "SCHEDULED"}
    runs = mlflow_runs(place)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "FINISHED", "KILLED", "FINISHED"]
    assert len({run.info.run_name for run in runs}) == 5
    assert [run.data.tags["trigger"] for run in runs] == ["schedule"] * 2 + ["button or API"] * 3
    for run in runs:
        if run.info.status == "FINISHED":
            assert run.data.metrics["cross_entropy/evaluation"] > 0
            assert run.data.metrics["train/device_hours"] > 0
            assert min(run.data.metrics) == "cross_entropy/evaluation"
            assert len(run.data.metrics) < 30
            assert run.data.tags["decision"]
            assert "| cost |" in run.data.tags["mlflow.note.content"]
    client = MlflowClient(f"http://127.0.0.1:{place.ports['MLFLOW']}")
    steps = [point.step for point in client.get_metric_history(runs[-1].info.run_id, "train/loss")]
    assert steps == sorted(set(steps))  # one curve, each step once


def picture_of_runs(place: Place, page: Browser) -> None:
    """The pages that a person looks at: Prefect's runs, MLflow's comparison, one run, and the registered version."""
    base = f"http://127.0.0.1:{place.ports['MLFLOW']}/#"
    page.open(f"http://127.0.0.1:{place.ports['PREFECT']}/v2/runs")
    page.wait_for("lr=0.003")
    picture(page, "prefect")
    runs = mlflow_runs(place)
    experiment, identity = runs[0].info.experiment_id, runs[0].info.run_id
    page.open(f"{base}/experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning")
    page.wait_for("cross_entropy/evaluation")
    picture(page, "compare")
    page.open(f"{base}/experiments/{experiment}/runs/{identity}?workflowType=machine_learning")
    page.wait_for("against the champion")
    picture(page, "run")
    page.open(f"{base}/models/gptpipe/versions/2")
    page.wait_for("against the champion")
    picture(page, "version")
