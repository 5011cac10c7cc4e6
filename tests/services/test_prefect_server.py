"""The server of a single command: what asks while it starts again waits, and where it cannot start that is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from gptpipe.errors import UserError
from gptpipe.services.prefect_server import PrefectServer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "prefect").mkdir()
    return tmp_path


@pytest.fixture
def server(home: Path) -> Iterator[PrefectServer]:
    server = PrefectServer()
    yield server
    server.stop()


def servers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "gptpipe.services.prefect_server" in each.cmdline()]


@pytest.mark.slow
def test_who_asks_a_killed_server_for_the_first_time_waits_for_the_next_one(server: PrefectServer) -> None:
    server.wait()
    (process,) = servers()
    process.kill()
    process.wait()
    # a client of its own, as each flow and task has one: Prefect's gives up where its first connection is refused
    assert httpx.get(f"{server.url}/health", timeout=120).json() is True
    assert server.starts == 2
    server.stop()
    with pytest.raises(httpx.ConnectError):  # nobody who asks now waits
        httpx.get(f"{server.url}/health", timeout=5)


@pytest.mark.slow
def test_a_server_that_ends_again_and_again_refuses_in_between_and_is_given_up(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home}/nowhere/prefect.db")
    server = PrefectServer()
    try:
        with pytest.raises(UserError, match="did not start"):
            server.wait()
        refused, until = False, time.monotonic() + 60
        while not refused and time.monotonic() < until:
            try:
                httpx.get(f"{server.url}/health", timeout=1)
            except httpx.ConnectError:
                refused = True
            except httpx.HTTPError:
                time.sleep(0.05)
        assert refused
    finally:
        server.stop()
