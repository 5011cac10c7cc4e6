"""Proves that settings come from the environment and `.env`, and that `.env.example` lists every one of them."""

from __future__ import annotations

import http.server
import os
import re
import threading
import urllib.request
from pathlib import Path

import httpx
import pytest
import requests
from pydantic import SecretStr

from gptpipe import storage
from gptpipe.config.settings import Settings, make_home, prepare_environment, reload_settings, settings
from gptpipe.errors import UserError
from gptpipe.services.ports import free_ports

EXAMPLE = Path(__file__).parents[2] / ".env.example"
NAMES = {f"GPTPIPE_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPTPIPE_HOME")
    return tmp_path


def test_the_example_lists_every_setting_once_and_nothing_else() -> None:
    text = EXAMPLE.read_text("utf-8")
    assigned = re.findall(r"^(?:# ?)?(GPTPIPE_\w+)=", text, flags=re.MULTILINE)
    assert sorted(assigned) == sorted(NAMES)
    assert set(re.findall(r"GPTPIPE_\w+", text)) == NAMES


def test_the_example_can_be_copied_as_it_is(folder: Path) -> None:
    (folder / ".env").write_bytes(EXAMPLE.read_bytes())
    assert reload_settings() == Settings(_env_file=None)


def test_every_line_of_the_example_is_a_value_that_its_setting_takes(folder: Path) -> None:
    lines = re.sub(r"^# ?(?=GPTPIPE_\w+=)", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    (folder / ".env").write_text(lines, "utf-8")
    reload_settings()


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_environment_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    chosen = {"GPTPIPE_LOG_LEVEL": "DEBUG", "GPTPIPE_CACHE_GIGABYTES": "1.5", "GPTPIPE_TASK_RUNNER": "dask"}
    chosen |= {"GPTPIPE_NIGHTLY_CRON": "0 2 * * 1-5", "GPTPIPE_GANG_PORTS": "30000-30009"}
    chosen |= {"GPTPIPE_S3_ENDPOINT": "http://10.0.0.1:9000"}
    chosen |= {"GPTPIPE_WEBHOOK": "https://chat/hook", "GPTPIPE_MLFLOW_AUTH": "user:password"}
    chosen |= {"GPTPIPE_WATCH_CRON": "*/5 * * * *", "GPTPIPE_SAME_TRAINING": "drop", "GPTPIPE_JOBSET_NODES": "3"}
    chosen |= {"GPTPIPE_CHAMPION_CRON": "0 6 * * 1", "GPTPIPE_CLEAN_CRON": "0 5 * * 0", "GPTPIPE_KEEP_VERSIONS": "9"}
    value = chosen.get(name, "4321" if name.endswith("_PORT") else "some-value")
    monkeypatch.setenv(name, value)
    found = getattr(reload_settings(), name.removeprefix("GPTPIPE_").lower())
    assert (found.get_secret_value() if isinstance(found, SecretStr) else str(found)) == value


def test_a_stack_that_is_up_is_used_unless_something_else_is_said(folder: Path) -> None:
    stack = folder / ".gptpipe" / "stack"
    stack.mkdir(parents=True)
    (stack / "stack.env").write_text("GPTPIPE_STORAGE=s3://stack\nGPTPIPE_MLFLOW_URI=http://stack\n")
    (folder / ".env").write_text("GPTPIPE_STORAGE=s3://mine\n")
    found = reload_settings()
    assert (found.storage, found.mlflow_uri) == ("s3://mine", "http://stack")


def test_the_file_in_the_working_directory_is_read_and_the_environment_wins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("GPTPIPE_STORAGE=s3://from-file/x/\nGPTPIPE_EXPERIMENT=from-file\nOTHER=1\n")
    monkeypatch.setenv("GPTPIPE_EXPERIMENT", "from-environment")
    here = reload_settings()
    assert here.storage_url == "s3://from-file/x"
    assert here.experiment == "from-environment"


@pytest.mark.parametrize("name", ["MLFLOW_URI", "MLFLOW_UI", "S3_ENDPOINT"])
def test_a_password_in_an_address_is_refused_without_being_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"GPTPIPE_{name}", "https://me:canary-5d1f@server.example.com:5000")
    with pytest.raises(UserError, match="GPTPIPE_MLFLOW_AUTH") as refused:
        reload_settings()
    assert "canary" not in str(refused.value)


def test_nobody_else_may_look_into_the_local_folder(folder: Path) -> None:
    make_home(folder / "a" / "home")
    assert (folder / "a" / "home").stat().st_mode & 0o066 == 0


def test_an_empty_variable_is_as_good_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")
    assert reload_settings() == Settings.model_construct()


def test_settings_are_read_once_until_they_are_reloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = reload_settings()
    monkeypatch.setenv("GPTPIPE_EXPERIMENT", "changed")
    assert settings() is before
    assert reload_settings().experiment == "changed"
    assert settings().experiment == "changed"


def test_without_settings_everything_lies_below_home(folder: Path) -> None:
    here = reload_settings()
    assert here.storage_url == str(folder / ".gptpipe" / "storage")
    assert here.tracking_uri == f"sqlite:///{folder / '.gptpipe' / 'mlflow.db'}"
    assert here.artifact_root == f"{here.storage_url}/mlflow"


def test_a_tracking_server_keeps_its_own_artifact_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTPIPE_MLFLOW_URI", "http://127.0.0.1:5000")
    assert reload_settings().artifact_root is None
    monkeypatch.setenv("GPTPIPE_MLFLOW_ARTIFACTS", "s3://bucket/mlflow/")
    assert reload_settings().artifact_root == "s3://bucket/mlflow"


def test_a_bad_value_is_refused_by_the_variable_s_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTPIPE_LOG_LEVEL", "chatty")
    with pytest.raises(UserError) as caught:
        reload_settings()
    assert caught.value.where == "GPTPIPE_LOG_LEVEL"
    assert caught.value.hint


def test_the_secret_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTPIPE_S3_SECRET_KEY", "very-secret")
    here = reload_settings()
    assert "very-secret" not in repr(here) + str(here) + here.model_dump_json()


def test_children_see_the_object_store_and_report_home_to_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "environ", {"GPTPIPE_S3_ENDPOINT": "http://127.0.0.1:1", "DO_NOT_TRACK": "0"})
    for name, value in (("ENDPOINT", "http://127.0.0.1:1"), ("ACCESS_KEY", "key"), ("SECRET_KEY", "secret")):
        os.environ[f"GPTPIPE_S3_{name}"] = value
    reload_settings()
    prepare_environment()
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == os.environ["AWS_ENDPOINT_URL_S3"] == "http://127.0.0.1:1"
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) == ("key", "secret")
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["DO_NOT_TRACK"] == "0"  # what the user set stays


def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of this machine is reached while the environment names a proxy that nobody is at."""
    (closed,) = free_ports(1)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    monkeypatch.delenv("no_proxy", raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        prepare_environment()
        assert urllib.request.urlopen(url, timeout=10).status == 200
        assert httpx.get(url, timeout=10).status_code == 200
    finally:
        server.shutdown()
        server.server_close()
    assert os.environ["NO_PROXY"] == "internal.example,127.0.0.1,localhost,::1"
    prepare_environment()
    assert os.environ["NO_PROXY"].count("localhost") == 1


@pytest.mark.parametrize("url", ["s3://", "s3:", "s3:/bucket/x", "s3:bucket", "s3:///x", "https://", "https:/x.org/a"])
def test_a_url_that_is_not_whole_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not a whole URL"):
        storage.normalize(url)
    with pytest.raises(UserError, match="not a whole URL"):
        storage.write_bytes(url, b"")
    assert not list(tmp_path.iterdir())


def test_a_storage_without_a_bucket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTPIPE_STORAGE", "s3://")
    with pytest.raises(UserError, match="not a whole URL"):
        storage.check_writable(storage.normalize(reload_settings().storage_url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "https://x.org", "folder", "a:b", "s3", "hf:gpt2"])
def test_what_is_whole_is_left_alone(url: str) -> None:
    storage.check_whole(url)


def test_a_socks_proxy_ends_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what speaks SOCKS, httpx and requests refuse where the variable is set, whatever they are asked for."""
    (closed,) = free_ports(1)
    monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{closed}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://gptpipe.invalid/", timeout=10)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get("http://gptpipe.invalid/", timeout=10)


def test_a_file_that_is_not_utf_8_is_refused_in_a_line(folder: Path) -> None:
    (folder / ".env").write_bytes("GPTPIPE_EXPERIMENT=Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8") as refused:
        reload_settings()
    assert refused.value.where == str(folder / ".env")


@pytest.mark.parametrize("name", ["GPTPIPE_MLFLOW_URI", "GPTPIPE_MLFLOW_UI", "GPTPIPE_S3_ENDPOINT"])
@pytest.mark.parametrize("url", ["http://", "http://host:99999", "http://host:4:4/x", "https://[::1"])
def test_an_address_that_is_none_is_refused_in_a_line(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(UserError) as refused:
        reload_settings()
    assert refused.value.where == name
