"""What a person reads when something is broken: one line, the same on the terminal and in Prefect.

A case is a home in the middle of a training or after it, in which one thing is damaged, and the same command again.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptpipe.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from tests.chaos.alone import PREFECT, RUN, Alone
from tests.chaos.attack import Attack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_LAST_STATE = "select message from flow_run_state where type in ('FAILED', 'CRASHED') order by timestamp desc limit 1"
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
    """A bit of the last file that a pattern names is flipped."""
    return lambda run: flip(newest(run.home / "storage", pattern), place)


def replace(name: str, content: bytes) -> Callable[[Alone], None]:
    def do(run: Alone) -> None:
        (run.home / name).write_bytes(content)

    return do


def remove(pattern: str) -> Callable[[Alone], None]:
    def do(run: Alone) -> None:
        shutil.rmtree(newest(run.folder, pattern))

    return do


@dataclass(frozen=True)
class Case:
    """What is broken, and what is said of it.

    Attributes:
        at: the home it is done to. words: more of the command.
        said: part of the message. where: part of the place. code: of the exit; 0 where it is put right by itself.
    """

    at: str
    what: Callable[[Alone], None]
    said: str = ""
    where: str = ""
    code: int = EXIT_USER_ERROR
    words: tuple[str, ...] = ()


AGAIN = ("--force",)
CASES = {
    "a token shard": Case(HALF, damage("datasets/*/train/*.parquet"), "damaged", "/train/", words=AGAIN),
    "a dataset's manifest": Case(HALF, damage("datasets/*/manifest.json"), "damaged", "manifest.json", words=AGAIN),
    "the weights of the newest checkpoint": Case(
        HALF, damage("trainings/*/step-*/model.safetensors"), "damaged", "model.safetensors"
    ),
    "the moments of the newest checkpoint": Case(
        HALF, damage("trainings/*/step-*/optimizer.safetensors"), "damaged", "optimizer.safetensors"
    ),
    "the state of the newest checkpoint": Case(HALF, damage("trainings/*/step-*/state.json"), "damaged", "state.json"),
    "the weights of the only checkpoint that is scored": Case(
        DONE, damage("trainings/*/step-*/model.safetensors"), "damaged", "model.safetensors"
    ),
    "MLflow's database": Case(HALF, replace("mlflow.db", b"no database" * 999), "database", "mlflow.db"),
    "Prefect's database": Case(HALF, replace(PREFECT, b"no database" * 999), "Prefect's server did not start", "http"),
    "the corpus is gone": Case(HALF, remove("corpus"), "", "corpus"),
}


@contextmanager
def full_disk(place: Path, megabytes: int) -> Iterator[None]:
    """A folder with its content on a disk that has no more room than that."""
    content = place.with_name(f"{place.name}-content")
    place.rename(content)
    place.mkdir(mode=0o700)
    size = sum(file.stat().st_size for file in content.rglob("*") if file.is_file()) + (megabytes << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        shutil.copytree(content, place, dirs_exist_ok=True, symlinks=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()
        content.rename(place)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """`half` and `done`: a home whose command was killed in mid-training, and the same after its end."""
    folder = tmp_path_factory.mktemp("catalogue")
    run = Alone(folder / "place")
    run.prepare({"mlflow.db": empty_database})
    run.run(Attack("kill", "all", "step-00000020", 0.1))  # and once more: to its end
    assert [each.code for each in run.tries] == [-9, EXIT_OK]
    run.folder.rename(folder / DONE)
    run = Alone(folder / "place")
    run.prepare({"mlflow.db": empty_database, PREFECT: folder / DONE / "home" / PREFECT})
    run.attempt(Attack("kill", "all", "step-00000020", 0.1))
    assert [each.code for each in run.tries] == [-9]
    run.folder.rename(folder / HALF)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_said_in_one_line_on_the_terminal_and_in_prefect(world: Path, name: str) -> None:
    case = CASES[name]
    shutil.copytree(world / case.at, world / "place", symlinks=True)
    run = Alone(world / "place", words=(*RUN, *case.words))
    try:
        case.what(run)
        run.attempt()
        (done,) = run.tries
        assert done.faults == []
        error = done.answer.get("error", {})
        assert done.code == case.code, error
        assert case.said in error["message"], error
        assert case.where in error["where"], error
        with closing(sqlite3.connect(run.home / PREFECT)) as database:
            (said,) = database.execute(_LAST_STATE).fetchone() or ("",)
        assert str(UserError(**error)) in said, said
    finally:
        run.end()
        shutil.rmtree(run.folder)
