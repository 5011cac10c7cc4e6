"""What ends a flow in this process: its Prefect server, and no other server that is asked by the same library."""

from __future__ import annotations

import http.server
import logging
from collections.abc import Iterator

import httpx
import pytest

from gptpipe.cli.pipeline import in_place
from gptpipe.config import PipelineConfig
from gptpipe.config.settings import reload_settings
from gptpipe.errors import UserError
from tests.fixtures.datasets import serving

pytestmark = pytest.mark.usefixtures("database", "prefect_database")


class Well(http.server.BaseHTTPRequestHandler):
    """A server of Prefect's that says that it is well, and has nothing else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "CRITICAL")
    monkeypatch.setattr(logging, "raiseExceptions", True)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(Well) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        reload_settings()
        yield f"{address}/api"


def test_prefect_s_server_is_named_as_the_one_that_failed(prefect: str) -> None:
    def call() -> None:
        raise httpx.ConnectError("refused", request=httpx.Request("GET", f"{prefect}/logs/"))

    with pytest.raises(UserError, match="refused") as failed:
        in_place(PipelineConfig(), call)
    assert failed.value.where == prefect


def test_another_server_is_not_taken_for_it(prefect: str) -> None:
    def call() -> None:
        raise httpx.ConnectError("refused", request=httpx.Request("GET", "https://hub.example/model"))

    with pytest.raises(httpx.ConnectError, match="refused"):
        in_place(PipelineConfig(), call)


def test_what_prefect_s_client_says_of_a_server_that_went_away_is_a_line_too(prefect: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect.settings.context import temporary_settings

    def call() -> None:
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()

    with pytest.raises(UserError, match="Failed to reach API"):
        in_place(PipelineConfig(), call)


def test_another_fault_stays_as_it_is(prefect: str) -> None:
    def call() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        in_place(PipelineConfig(), call)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/api", "does not answer"),
        ("foo", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://127.0.0.1:4:4/api", "no address of a server"),
        ("http://127.0.0.1:99999/api", "no address of a server"),
        ("http://[::1/api", "no address of a server"),
    ],
)
def test_a_server_that_is_not_there_is_told_before_anything_is_done(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    reload_settings()

    def call() -> None:
        raise AssertionError("nothing is begun")

    with pytest.raises(UserError, match=said) as refused:
        in_place(PipelineConfig(), call)
    assert url in refused.value.where
