"""A better model that waits for a person: the flow run is paused, the form is filled in a browser, the alias moves."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gptpipe.config import PromoteConfig
from gptpipe.config.settings import settings
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.moves import champion_number
from tests.fixtures.browser import CHROMIUM, browser
from tests.flows.test_nights import add, command
from tests.flows.test_retrain import GPTPIPE, ask

pytestmark = pytest.mark.slow
_SWITCH = """() => {
  const all = [...document.querySelectorAll('[role=dialog] [role=switch], [role=dialog] [role=checkbox]')];
  all.forEach(each => each.click());
  return all.length;
}"""


@pytest.fixture
def corpus(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts of a first night, on a server that has pages."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    folder = tmp_path / "corpus"
    folder.mkdir()
    add(folder, range(60))
    return folder


def start(corpus: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(corpus, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=corpus
    )


def paused(api: str) -> str:
    """The id of the flow run that waits, once one does."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        runs = ask(api, "/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["PAUSED"]}}})
        if runs:
            return str(runs[0]["id"])
        time.sleep(1)
    raise AssertionError("no flow run is paused")


def champion() -> str:
    with Tracking.of(settings()).reached() as client:
        return champion_number(client, PromoteConfig())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the form is filled by a browser")
def test_a_person_agrees_in_the_ui(corpus: Path, prefect_api: str, tmp_path: Path) -> None:
    process = start(corpus, "promote.approval_hours=1")
    run = paused(prefect_api)
    assert champion() == ""
    with browser(tmp_path / "profile") as page:
        page.open(f"{prefect_api.removesuffix('/api')}/runs/flow-run/{run}")
        page.wait_for("Paused")
        page.click("Resume")
        page.wait_for("become champion?")
        page.wait_for("Make it the champion")
        assert page.run(_SWITCH) == 1
        page.type("[role=dialog] input[type=text], [role=dialog] textarea", "looks fine")
        if folder := os.environ.get("EVENING_PICTURES"):
            page.picture(Path(folder) / "approval.png")
        page.click("Submit")
        out, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    model: dict[str, Any] = json.loads(out)["model"]
    assert model["decision"] == "approved by a person (looks fine): there was no champion"
    assert (model["champion"], champion()) == (True, "1")


def test_nobody_answers_and_the_champion_stays_until_somebody_does(corpus: Path, prefect_api: str) -> None:
    process = start(corpus, "promote.approval_hours=0.002")  # seven seconds
    out, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    assert "nobody answered within 0.002 hours: the champion stays" in log
    assert json.loads(out)["model"]["champion"] is False
    assert champion() == ""
    runs = ask(prefect_api, "/flow_runs/filter", sort="START_TIME_DESC")
    newest = next(run for run in runs if not run["parent_task_run_id"])
    assert newest["state_type"] == "COMPLETED"
    done = subprocess.run([GPTPIPE, "approve", "1"], capture_output=True, text=True, check=False, cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert champion() == "1"


def test_an_answer_in_a_terminal_ends_the_wait(corpus: Path, prefect_api: str) -> None:
    process = start(corpus, "promote.approval_hours=1")
    paused(prefect_api)
    done = subprocess.run(
        [GPTPIPE, "approve", "1", "--note", "by hand"], capture_output=True, text=True, check=False, cwd=corpus
    )
    assert done.returncode == 0, done.stderr
    out, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    assert "`gptpipe approve 1`" in log
    model: dict[str, Any] = json.loads(out)["model"]
    assert model["decision"] == "approved by a person (by hand): there was no champion"
    assert (model["champion"], champion()) == (True, "1")
    client = Tracking.of(settings()).connect()
    run = client.get_run(client.get_model_version("gptpipe", "1").run_id or "")
    assert "approved by a person (by hand)" in run.data.tags["decision"]
    heard = ask(prefect_api, "/events/filter", filter={"event": {"prefix": ["gptpipe.model."]}})["events"]
    ours = [each["event"] for each in heard if each["payload"].get("reason", "").endswith("there was no champion")]
    assert sorted(set(ours)) == ["gptpipe.model.promoted", "gptpipe.model.waits"]
