"""What the page of a failed run shows, with a rank that has a fault of ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.flows.test_nights import add, command
from tests.flows.test_retrain import ask

# Python imports this module as it starts; a rank's loop then fails in its first step.
FAULT = """
import sys
if "gptpipe.train" in sys.orig_argv and "torch.distributed.run" not in sys.orig_argv:
    from gptpipe.train.loop import Loop
    def run(loop):
        return 1 / 0
    Loop.run = run
"""


@pytest.mark.slow
def test_the_fault_of_a_rank_is_a_line_and_its_traceback_is_at_debug(tmp_path: Path, prefect_api: str) -> None:
    corpus, module = tmp_path / "corpus", tmp_path / "module"
    corpus.mkdir()
    module.mkdir()
    add(corpus, range(60))
    (module / "sitecustomize.py").write_text(FAULT)
    environment = os.environ | {"PYTHONPATH": str(module), "PREFECT_API_URL": prefect_api}
    done = subprocess.run(command(corpus), cwd=corpus, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["error"]["message"].startswith("TrainingFailed: rank 0: ")
    assert "sitecustomize.py" in done.stderr
    lines = ask(prefect_api, "/logs/filter", sort="TIMESTAMP_ASC", limit=200)
    errors = {line["flow_run_id"]: line["message"] for line in lines if line["level"] >= 40}
    assert len(errors) == sum(line["level"] >= 40 for line in lines) == 2, errors  # the run's page and its training's
    assert set(errors.values()) == {
        "TrainingFailed: rank 0: ZeroDivisionError: division by zero (the traceback is at DEBUG)"
    }
    assert not [line for line in lines if line["level"] >= 20 and "Traceback" in line["message"]]
    (trace,) = [line["message"] for line in lines if line["level"] == 10 and "Traceback" in line["message"]]
    assert "sitecustomize.py" in trace, "where the rank failed"
