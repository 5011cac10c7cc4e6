"""What is said of a tracking server that does not answer."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gptpipe.config.settings import reload_settings
from gptpipe.errors import UserError
from gptpipe.services.ports import free_ports
from tests.fixtures.bad_store import bad_store
from tests.fixtures.environment import begin_again
from tests.fixtures.s3 import S3Server
from tests.fixtures.tracked import tracking

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def refusal(uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GPTPIPE_MLFLOW_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    reload_settings()
    with pytest.raises(UserError) as caught, tracking().reached() as client:
        client.get_experiment_by_name("x")
    assert caught.value.where == uri
    return caught.value.message


def test_a_server_that_is_not_there_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(f"http://127.0.0.1:{free_ports(1)[0]}", monkeypatch)
    assert said == "MLflow cannot be reached: connection refused"


def test_a_name_that_nobody_knows_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal("http://nowhere.invalid", monkeypatch)
    assert said.startswith("MLflow cannot be reached: ")
    assert "name" in said
    assert "HTTPConnection" not in said


def test_a_server_that_is_silent_is_said_in_plain_words(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(deaf, monkeypatch) == "MLflow cannot be reached: timed out"


class _Ready(BaseHTTPRequestHandler):
    """Answers every request with a version that is ready."""

    def do_POST(self) -> None:
        answer = json.dumps({"model_version": {"name": "a", "version": "1", "status": "READY"}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_a_version_that_is_waited_for_is_no_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = logging.getLogger("mlflow.store.model_registry.abstract_store")
    quiet.setLevel(logging.NOTSET)
    monkeypatch.setattr(quiet, "handlers", [caplog.handler])
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GPTPIPE_MLFLOW_URI", f"http://127.0.0.1:{server.server_port}")
        reload_settings()
        assert tracking().connect().create_model_version("a", "s3://bucket/a").version == "1"
        server.shutdown()
    assert "Waiting" not in caplog.text


def test_an_object_store_that_refuses_mlflow_s_artifacts_is_a_line(
    s3: S3Server, database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bad_store(s3.endpoint) as door:
        for name, value in s3.settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GPTPIPE_S3_ENDPOINT", door.url)
        monkeypatch.setenv("GPTPIPE_MLFLOW_ARTIFACTS", f"s3://{s3.bucket}/mlflow")
        begin_again()
        track = tracking()
        with track.reached() as client:
            run = client.create_run(track.experiment_id(client)).info.run_id
            client.log_text(run, "it is well", "a.txt")
        door.begin("403", 60)
        with (
            pytest.raises(UserError, match="MLflow's artifacts cannot be stored") as refused,
            track.reached() as client,
        ):
            client.log_text(run, "it is not", "b.txt")
        assert "AccessDenied" in refused.value.message
        assert refused.value.hint == "run the same again: what is done is not done again"
