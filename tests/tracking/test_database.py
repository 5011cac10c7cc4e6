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
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "nothing is left over"
    assert [each.name for each in MlflowClient(f"sqlite:///{file}").search_experiments()] == ["Default"]


def test_two_that_make_it_at_once_make_one_and_both_may_write_at_once(tmp_path: Path) -> None:
    """What one has opened is never replaced by the other's: SQLite would refuse each of its writes."""
    program = PROGRAM + (
        "; from mlflow import MlflowClient; client = MlflowClient('sqlite:///' + sys.argv[1])"
        "; [client.create_experiment(f'{sys.argv[2]}-{i}') for i in range(100)]"
    )
    file = tmp_path / "mlflow.db"
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(file), name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    for process in both:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert len(MlflowClient(f"sqlite:///{file}").search_experiments()) == 201
    before = file.stat().st_ino
    make_database(file)
    assert file.stat().st_ino == before


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.touch()
    make_database(file)
    assert [each.name for each in MlflowClient(f"sqlite:///{file}").search_experiments()] == ["Default"]


def test_one_that_was_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mlflow.db"
    make_database(file)
    assert "is new" not in caplog.text
    (tmp_path / "storage" / "trainings" / "abc").mkdir(parents=True)
    (tmp_path / "storage" / "trainings" / "abc" / "outcome.json").touch()
    make_database(file)
    assert "is new" not in caplog.text
    file.unlink()
    make_database(file)
    assert f"{file} is new" in caplog.text
