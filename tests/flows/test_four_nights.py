"""Nights by the schedule of `infra/up.sh`, on text that grows: promoted, kept, skipped, stopped, and each explained.

The text is Python's standard library: code in the first nights, tables of character encodings in the last. With
NIGHTS_PICTURES set to a folder, pages and records are kept there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.browser import CHROMIUM, Browser, browser
from tests.fixtures.place import Place, folder_for_all, stack_in, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(sysconfig.get_path("stdlib"))
PACKAGES = (["asyncio", "email", "json", "http", "xml"], ["unittest", "importlib", "ctypes", "multiprocessing"])
CONFIG: dict[str, Any] = {
    "init": "champion",
    "model": {"n_layer": 2, "n_embd": 64, "n_head": 4, "context_length": 64},
    "train": {
        "steps": 150,
        "batch_size": 16,
        "learning_rate": 0.003,
        "warmup_steps": 10,
        "validate_every": 50,
        "checkpoint_every": 50,
        "log_every": 10,
    },
    "evaluate": {"max_tokens": 40_000},
    "sample": {"max_new_tokens": 30},
    "promote": {"min_improvement": 0.1},
}


def add(corpus: Path, *packages: str) -> None:
    for package in packages:
        for file in sorted((LIBRARY / package).rglob("*.py")):
            target = corpus / file.relative_to(LIBRARY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def up(place: Place) -> subprocess.CompletedProcess[str]:
    script = ["bash", str(ROOT / "infra" / "up.sh"), "--json"]
    return subprocess.run(script, env=place.environment(), capture_output=True, text=True, timeout=900)


@pytest.fixture
def place() -> Iterator[Place]:
    with folder_for_all("nights") as folder:
        add(folder / "library", *PACKAGES[0])
        data = {"corpus": [str(folder / "library")], "validation": 0.3}
        (folder / "retrain.yaml").write_text(yaml.safe_dump({"data": data, **CONFIG}))
        cron = {"GPTPIPE_RETRAIN_CONFIG": str(folder / "retrain.yaml"), "GPTPIPE_NIGHTLY_CRON": "*/2 * * * *"}
        with stack_in(folder, start=up, **cron) as place:
            yield place


def begun(place: Place) -> list[dict[str, Any]]:
    """The schedule's runs that have begun, the first one first."""
    asked = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC"}
    return [run for run in place.prefect("flow_runs/filter", asked) if run["auto_scheduled"] and run["start_time"]]


def next_night(place: Place, so_far: int) -> dict[str, Any]:
    """The state in which the schedule's next run ends."""
    wait_until(lambda: len(begun(place)) > so_far, 200, f"night {so_far + 1}")
    identity = begun(place)[so_far]["id"]
    wait_until(lambda: place.state(identity)["type"] in ("COMPLETED", "FAILED", "CRASHED"), 300, "its end")
    return {**place.state(identity), "run": identity}


def keep(name: str, text: str) -> None:
    if folder := os.environ.get("NIGHTS_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_text(text)


def picture(page: Browser, name: str) -> None:
    if folder := os.environ.get("NIGHTS_PICTURES"):
        time.sleep(3)
        page.picture(Path(folder) / f"{name}.png")


def test_four_nights(place: Place, tmp_path: Path) -> None:
    corpus = place.folder / "library"
    states = [next_night(place, 0)]
    assert "version 1 promoted: there was no champion" in states[0]["message"], states

    add(corpus, *PACKAGES[1])  # more of the same
    states.append(next_night(place, 1))
    assert "version 2 promoted: better: " in states[1]["message"], states[1]

    (corpus / "few.py").write_text("\n\n\n".join((LIBRARY / f"{name}.py").read_text() for name in ("abc", "bisect")))
    states.append(next_night(place, 2))  # there is too little new text to be better by much
    assert "version 3 not promoted: not surely better by 0.1 nats per token" in states[2]["message"], states[2]

    states.append(next_night(place, 3))
    assert (states[3]["name"], "skipped: nothing is new" in states[3]["message"]) == ("Skipped", True), states[3]

    add(corpus, "encodings")
    states.append(next_night(place, 4))
    assert states[4]["type"] == "FAILED", states[4]
    assert "the text is not what the champion was trained on" in states[4]["message"]
    assert "\n" not in states[4]["message"]
    nightly = place.deployments()["retrain/nightly"]
    place.prefect(f"deployments/{nightly['id']}", {"paused": True}, method="PATCH")

    # nobody was there: what the record says of each
    told = place.call("report", "--since", "1d", **place.stack_environment())
    assert told.returncode == 0, told.stderr
    keep("record.txt", told.stdout)
    keep("states.json", json.dumps(states, indent=1))
    for words in ("champion", "kept", "skipped", "nothing is new", "is not what the champion was trained on"):
        assert words in told.stdout, told.stdout
    pages = place.prefect("artifacts/filter", {})
    of: list[dict[str, Any]] = [
        {page["key"]: page["data"] for page in pages if page["flow_run_id"] == state["run"]} for state in states
    ]
    for night, found in enumerate(of, 1):
        keep(f"night-{night}.md", "\n\n".join(f"# {key}\n\n{text}" for key, text in found.items()))
    assert "needed to become champion" in of[1]["retrain"]
    assert "divergence of token frequencies" in of[4]["news"]
    for log in (place.folder / ".gptpipe" / "stack" / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log
    if CHROMIUM:
        with browser(tmp_path / "profile") as page:
            for night, state in enumerate(states, 1):
                page.open(f"http://127.0.0.1:{place.ports['PREFECT']}/v2/runs/flow-run/{state['run']}")
                page.wait_for("Subflow Runs")
                page.open_tab("Details")
                page.wait_for(state["message"][:40])
                picture(page, f"night-{night}")
