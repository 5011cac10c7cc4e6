"""Proves that processes, Dask and Ray make the same dataset, byte for byte, and that a worker's complaint arrives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import sys

from flows import begin

if __name__ == "__main__":
    begin()
    from gptpipe.config import DataConfig
    from gptpipe.errors import UserError
    from flows.tokenize import TokenizeParameters, tokenize

    data, storage = json.loads(sys.argv[1]), sys.argv[2]
    try:
        answer = {"result": tokenize(TokenizeParameters(data=DataConfig(**data), storage=storage)).as_dict()}
    except UserError as error:
        answer = {"error": str(error), "where": error.where}
    except BaseException as error:
        answer = {"other": type(error).__mro__[0].__name__, "text": str(error)}
    print("\\nANSWER " + json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Engines:
    """Runs the flow in a process of its own on one of the engines."""

    folder: Path
    api: str

    def run(self, engine: str, data: dict[str, Any]) -> dict[str, Any]:
        script = self.folder / "tokenize_here.py"
        script.write_text(SCRIPT)
        environment = {
            **os.environ,
            "PREFECT_API_URL": self.api,
            "GPTPIPE_TASK_RUNNER": engine,
            "GPTPIPE_HOME": str(self.folder / f"home-{engine}"),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(data), str(self.folder / engine)],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=900,
        )
        answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
        assert answers, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(answers[-1].removeprefix("ANSWER "))
        return found


@pytest.fixture
def engines(tmp_path: Path, prefect_api: str) -> Engines:
    return Engines(tmp_path, prefect_api)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that is cut into ranges, a hundred small ones, JSON lines, and copies of some."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "long.txt").write_text("".join(f"line {i} of a long text, {i * 7919 % 1009}\n" for i in range(70_000)))
    for i in range(100):
        (folder / f"{i:03}.txt").write_text(f"document {i % 90}: " + " ".join(str(j * i % 90) for j in range(50)))
    lines = [json.dumps({"text": f"a record, number {i % 400} of them"}) for i in range(500)]
    (folder / "records.jsonl").write_text("\n".join(lines))
    return folder


def settings_of(corpus: Path) -> dict[str, Any]:
    return {
        "corpus": [str(corpus)],
        "validation": 0.2,
        "shard_megabytes": 1,
        "drop_duplicates": True,
        "workers": 2,
    }


def shards_of(url: str) -> dict[str, str]:
    """Path → SHA-256, as the files are and not as the index says."""
    import hashlib

    return {
        path.relative_to(url).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(url).rglob("*.parquet"))
    }


def check_the_same_dataset(engines: Engines, corpus: Path, engine: str) -> None:
    one = engines.run("processes", settings_of(corpus))["result"]
    other = engines.run(engine, settings_of(corpus)).get("result")
    assert other is not None
    assert other["id"] == one["id"]
    assert sum(one["dropped"].values()) == 110  # 10 files and 100 records are copies
    assert {**other, "dataset": "", "megabytes_per_second": 0} == {**one, "dataset": "", "megabytes_per_second": 0}
    shards = shards_of(one["dataset"])
    assert shards_of(other["dataset"]) == shards
    index = pq.read_table(Path(one["dataset"]) / "shards.parquet").to_pylist()
    assert len(index) > 4
    for entry in index:
        assert shards[entry["path"]] == entry["sha256"]
    documents = [
        row["document_id"]
        for entry in index
        for row in pq.read_table(Path(one["dataset"]) / entry["path"], columns=["document_id"]).to_pylist()
    ]
    assert len({entry["hash"] for entry in index if _holds(one["dataset"], entry, "long.txt")}) > 1  # ranges
    assert any(document.startswith("records.jsonl") for document in documents)


def _holds(url: str, entry: dict[str, Any], name: str) -> bool:
    table = pq.read_table(Path(url) / entry["path"], columns=["document_id"])
    return any(identity.startswith(name) for identity in table.column("document_id").to_pylist())


def check_that_a_complaint_arrives(engines: Engines, folder: Path, engine: str) -> None:
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"document {i}")
    (folder / "latin.txt").write_bytes("né".encode("latin-1"))
    answer = engines.run(engine, {"corpus": [str(folder)], "validation": 0.2, "workers": 2})
    assert "latin.txt" in answer["where"] + answer["error"]
    assert "not UTF-8" in answer["error"]


def test_processes_pass_on_a_complaint(engines: Engines, tmp_path: Path) -> None:
    check_that_a_complaint_arrives(engines, tmp_path / "bad", "processes")


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_another_engine_makes_the_same_dataset_as_processes(engines: Engines, corpus: Path, engine: str) -> None:
    pytest.importorskip(f"prefect_{engine}", reason="infra/test.sh --all installs it")
    check_the_same_dataset(engines, corpus, engine)


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_another_engine_passes_on_a_complaint(engines: Engines, tmp_path: Path, engine: str) -> None:
    pytest.importorskip(f"prefect_{engine}", reason="infra/test.sh --all installs it")
    check_that_a_complaint_arrives(engines, tmp_path / "bad", engine)
