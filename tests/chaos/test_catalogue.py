"""What a person reads when something is broken: one line, the same on the terminal and in Prefect.

A case is a home in the middle of a training or after it, in which one thing is damaged, and the same command again.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gptpipe.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from tests.chaos.alone import RUN, Alone
from tests.chaos.attack import Attack
from tests.fixtures.databases import PREFECT

pytestmark = pytest.mark.slow
_FAILED = "select message from flow_run_state where type in ('FAILED', 'CRASHED') and timestamp > ?"
HALF, DONE = "half", "done"


def newest(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    assert files, pattern
    return files[-1]


def flip(file: Path, place: int = -20) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def damage(pattern: str, place: int = -20) -> Callable[[Alone], None]:
    """A bit of each file that a pattern names is flipped."""

    def do(run: Alone) -> None:
        files = list((run.home / "storage").glob(pattern))
        assert files, pattern
        for file in files:
            flip(file, place)

    return do


def damage_checkpoint(name: str) -> Callable[[Alone], None]:
    """A bit of a file of the newest complete checkpoint is flipped: a kill may have left a newer one half-written."""
    return lambda run: flip(newest(run.home / "storage", "trainings/*/step-*/manifest.json").with_name(name))


def replace(name: str, content: bytes) -> Callable[[Alone], None]:
    def do(run: Alone) -> None:
        if (run.home / name).is_dir():
            shutil.rmtree(run.home / name)
        (run.home / name).write_bytes(content)

    return do


def cut(pattern: str) -> Callable[[Alone], None]:
    def do(run: Alone) -> None:
        file = newest(run.home / "storage", pattern)
        file.write_bytes(file.read_bytes()[:100])

    return do


def half_of_metrics(run: Alone) -> None:
    """The first half of a training's metrics is noise, and MLflow, which had them, is empty."""
    file = newest(run.home / "storage", "trainings/*/metrics.jsonl")
    content = file.read_bytes()
    file.write_bytes(bytes(byte ^ 0x55 for byte in content[: len(content) // 2]) + content[len(content) // 2 :])
    (run.home / "mlflow.db").unlink()


def zeros(pattern: str) -> Callable[[Alone], None]:
    """Every file that a pattern names in the home keeps its length, and holds nothing else."""

    def do(run: Alone) -> None:
        files = list(run.home.glob(pattern))
        assert files
        for file in files:
            file.write_bytes(bytes(file.stat().st_size))

    return do


def remove(pattern: str) -> Callable[[Alone], None]:
    def do(run: Alone) -> None:
        shutil.rmtree(newest(run.folder, pattern))

    return do


def broken_line(run: Alone) -> None:
    (run.folder / "corpus" / "notes.jsonl").write_text('{"text": "whole"}\n{"text": "cut o')


def truncated_weights(run: Alone) -> None:
    checkpoint = newest(run.home / "storage", "trainings/*/step-*/manifest.json").parent
    shutil.copytree(checkpoint, run.folder / "weights")
    file = run.folder / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@dataclass(frozen=True)
class Case:
    """What is broken, and what is said of it.

    Attributes:
        at: the home it is done to. words: more of the command.
        said: what the line says; of what is put right by itself (code 0), a part of the log.
        where: part of the place. code: of the exit.
        in_flow: whether it is only seen while a flow runs, and so said in Prefect too.
    """

    at: str
    what: Callable[[Alone], None]
    said: str
    where: str = ""
    code: int = EXIT_USER_ERROR
    words: tuple[str, ...] = ()
    in_flow: bool = False


PASSED_OVER = "damaged: its size or SHA-256 is not what it should be; the checkpoint is passed over"
CASES = {
    "a token shard": Case(HALF, damage("datasets/*/train/*.parquet"), "damaged, made again", code=EXIT_OK),
    "a dataset's manifest": Case(HALF, damage("datasets/*/manifest.json"), "made again", code=EXIT_OK),
    "a dataset's index": Case(HALF, damage("datasets/*/shards.parquet"), "made again", code=EXIT_OK),
    "the newest weights": Case(HALF, damage_checkpoint("model.safetensors"), PASSED_OVER, code=EXIT_OK),
    "the newest moments": Case(HALF, damage_checkpoint("optimizer.safetensors"), PASSED_OVER, code=EXIT_OK),
    "the newest state": Case(HALF, damage_checkpoint("state.json"), PASSED_OVER, code=EXIT_OK),
    "weights to start from": Case(
        HALF, truncated_weights, "", "model.safetensors", words=("--set", "train.seed=2", "--init", "weights")
    ),
    "a finished training's weights": Case(DONE, cut("trainings/*/step-*/model.safetensors"), "again", code=EXIT_OK),
    "a training's outcome": Case(DONE, damage("trainings/*/outcome.json", 7), "outcome.json: damaged", code=EXIT_OK),
    "a training's metrics": Case(DONE, half_of_metrics, "left out of the curves", code=EXIT_OK),
    "an evaluation": Case(DONE, damage("evaluations/*.json", 7), "json: damaged, and is made again", code=EXIT_OK),
    "samples": Case(DONE, damage("samples/*.json", 7), "json: damaged, and is made again", code=EXIT_OK),
    "the token cache": Case(HALF, zeros("cache/tokens/*/*.bin"), "decoded again", code=EXIT_OK),
    "a folder's place": Case(DONE, replace("storage/evaluations", b"a file"), "", "evaluations", in_flow=True),
    "a line of JSON": Case(DONE, broken_line, "", "notes.jsonl", in_flow=True),
    "MLflow's database": Case(HALF, replace("mlflow.db", b"no database" * 999), "not a database", "mlflow.db"),
    "Prefect's database": Case(HALF, replace(PREFECT, b"no database" * 999), "database is damaged", PREFECT),
    "no corpus": Case(HALF, remove("corpus"), "no file matches", "corpus"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, empty_prefect: Path) -> Path:
    """`half` and `done`: a home whose command was killed in mid-training, and the same after its end."""
    folder = tmp_path_factory.mktemp("catalogue")
    run = Alone(folder / "place")
    run.prepare({"mlflow.db": empty_database, PREFECT: empty_prefect})
    run.run(Attack("kill", "all", "step-00000020", 0.1))  # and once more: to its end
    assert [each.code for each in run.tries] == [-9, EXIT_OK]
    run.folder.rename(folder / DONE)
    run = Alone(folder / "place")
    run.prepare({"mlflow.db": empty_database, PREFECT: empty_prefect})
    run.attempt(Attack("kill", "all", "step-00000020", 0.1))
    assert [each.code for each in run.tries] == [-9]
    run.folder.rename(folder / HALF)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_put_right_or_said_in_one_line_on_the_terminal_and_in_prefect(world: Path, name: str) -> None:
    case = CASES[name]
    shutil.copytree(world / case.at, world / "place", symlinks=True)
    run = Alone(world / "place", words=(*RUN, *case.words))
    try:
        case.what(run)
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        run.attempt()
        (done,) = run.tries
        error = done.answer.get("error", {})
        assert done.faults == [], done.said[-8:]
        assert done.code == case.code, error
        if not done.code:
            assert case.said in "\n".join(done.said)
            return
        assert case.said in error["message"], error
        assert case.where in error["where"], error
        if case.in_flow:
            with closing(sqlite3.connect(run.home / PREFECT)) as database:
                said = [text for (text,) in database.execute(_FAILED, (began,)) if "its process was killed" not in text]
            assert said
            assert all(str(UserError(**error)) in text for text in said), said
    finally:
        run.end()
        shutil.rmtree(run.folder)
