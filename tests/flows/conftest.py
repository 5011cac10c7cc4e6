"""A real Prefect server for the flows of a module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptpipe.services.ports import free_ports
from tests.fixtures.databases import copy_database


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, empty_prefect: Path) -> Iterator[str]:
    """The address of the API of a Prefect server that lives as long as the module's tests: it is busy all the time."""
    (port,) = free_ports(1)
    home = tmp_path_factory.mktemp("prefect")
    copy_database(empty_prefect, home / "prefect.db")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment["PREFECT_SERVER_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
    command = [
        str(Path(sys.executable).with_name("prefect")),
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    api = f"http://127.0.0.1:{port}/api"
    until = time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{api}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (home / "server.log").read_text()
                assert time.monotonic() < until, (home / "server.log").read_text()
                time.sleep(0.2)
        yield api
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
