"""The model that serves on text that came after it, and old files by a flow: run as a worker runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptpipe.config.settings import settings
from tests.flows.test_nights import add, night
from tests.flows.test_retrain import ask

pytestmark = pytest.mark.slow
FLOW = """
import json, sys
from flows.deployed import {name}
parameters = json.loads(sys.argv[1])
{name}(parameters, return_state=True)
"""


def flow(name: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FLOW.format(name=name), json.dumps(parameters)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def last(api: str, name: str) -> dict[str, Any]:
    """The newest run of a flow."""
    body = {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC"}
    return ask(api, "/flow_runs/filter", **body)[0]


def test_the_champion_drifts_when_the_text_does(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    given = {"corpus": [f"code={corpus}"], "data": {"validation": 0.4, "shard_megabytes": 1}}
    nobody = flow("score_champion", **given)
    assert last(prefect_api, "score-champion")["state_type"] == "FAILED"
    assert "no version is champion" in nobody.stderr
    add(corpus, range(80))
    trained = night(corpus, "data.validation=0.4")
    assert trained.returncode == 0, trained.stderr

    flow("score_champion", **given)
    same = last(prefect_api, "score-champion")["state"]
    assert (same["name"], "too few to tell" in same["message"]) == ("Completed", True)

    add(corpus, range(80, 160))
    flow("score_champion", **given)
    alike = last(prefect_api, "score-champion")["state"]
    assert (alike["name"], "has not drifted" in alike["message"]) == ("Completed", True), alike

    for number in range(80):
        (corpus / f"other-{number}.py").write_text(f"все люди рождаются свободными, и их {number} " * 20)
    done = flow("score_champion", **given)
    drifted = last(prefect_api, "score-champion")["state"]
    assert (drifted["name"], "champion version 1 has drifted" in drifted["message"]) == ("Drifted", True), done.stderr
    pages = [each["data"] for each in ask(prefect_api, "/artifacts/filter") if each["key"] == "champion"]
    assert any("| new since its dataset |" in page for page in pages)


def test_old_files_are_listed_and_by_its_schedule_removed(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    old = Path(settings().storage_url) / "datasets" / ("a" * 32)
    old.mkdir(parents=True)
    (old / "shard.parquet").write_bytes(b"x" * 1000)
    for path in (old / "shard.parquet", old):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    listed = flow("clean", older_than=30)
    assert old.exists()
    assert "may be removed" in last(prefect_api, "clean")["state"]["message"], listed.stderr
    removed = flow("clean", older_than=30, apply=True)
    assert not old.exists(), removed.stderr
    assert last(prefect_api, "clean")["state"]["message"].endswith("removed")
