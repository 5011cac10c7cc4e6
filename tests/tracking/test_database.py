"""MLflow's database is there whole or not at all: who is killed while it is made leaves nothing in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gptpipe.tracking.database import make_database

PROGRAM = (
    "import sys, pathlib; from gptpipe.tracking.database import make_database; make_database(pathlib.Path(sys.argv[1]))"
)


def making(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], env=os.environ, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("tables", [3, 20])
def test_a_process_that_is_killed_while_it_makes_it_is_none(tmp_path: Path, tables: int) -> None:
    file = tmp_path / "mlflow.db"
    process = making(file)
    while sum(path.stat().st_size for path in tmp_path.glob(".tmp-*-mlflow.db")) < 4096 * tables:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not file.exists()
    make_database(file)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert [each.name for each in MlflowClient(f"sqlite:///{file}").search_experiments()] == ["Default"]


@pytest.mark.slow
def test_two_that_make_it_at_once_make_one(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    both = [making(file), making(file)]
    assert [process.wait() for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    client = MlflowClient(f"sqlite:///{file}")
    client.create_experiment("another")
    before = file.stat().st_ino
    make_database(file)
    assert file.stat().st_ino == before
