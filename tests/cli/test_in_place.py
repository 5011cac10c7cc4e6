"""What ends a flow in this process: its Prefect server, and no other server that is asked by the same library."""

from __future__ import annotations

import logging

import httpx
import pytest

from gptpipe.cli.pipeline import in_place
from gptpipe.config import PipelineConfig
from gptpipe.config.settings import reload_settings
from gptpipe.errors import UserError

PREFECT = "http://127.0.0.1:9/api"


@pytest.mark.usefixtures("database", "prefect_database")
@pytest.mark.parametrize(
    ("asked", "raised"), [(f"{PREFECT}/logs/", UserError), ("https://hub.example/model", httpx.ConnectError)]
)
def test_only_prefect_s_server_is_named_as_the_one_that_failed(
    asked: str, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", PREFECT)
    for name in ("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "CRITICAL")
    monkeypatch.setattr(logging, "raiseExceptions", True)
    reload_settings()

    def call() -> None:
        raise httpx.ConnectError("refused", request=httpx.Request("GET", asked))

    with pytest.raises(raised, match="refused"):
        in_place(PipelineConfig(), call)
