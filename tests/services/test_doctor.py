"""What is planted wrong, `gptpipe doctor` finds: in the check that it belongs to, by name, with what to do."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gptpipe.cli.services import is_time
from gptpipe.config.settings import prepare_environment, reload_settings, settings
from gptpipe.services.doctor import examine
from gptpipe.services.ports import free_ports
from gptpipe.services.settings_checks import Check, check_settings
from tests.fixtures.s3 import S3Server

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a home that has been used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTPIPE_HOME", str(tmp_path / ".gptpipe"))
    (tmp_path / ".gptpipe").mkdir()
    return tmp_path


def examined(name: str) -> list[Check]:
    """The checks of that name."""
    reload_settings()
    prepare_environment()
    if name == "settings":  # the rest takes its time
        return check_settings(settings(), os.environ, is_time)
    return [check for check in examine(settings(), is_time) if check.name == name]


def test_on_a_machine_where_nothing_is_wrong_nothing_is_found(folder: Path) -> None:
    reload_settings()
    prepare_environment()
    assert [check for check in examine(settings(), is_time) if check.ok is False] == []


@pytest.mark.parametrize(
    ("variable", "value", "check", "words", "hint"),
    [
        ("GPTPIPE_STORGE", "s3://bucket", "settings", "no setting is called GPTPIPE_STORGE", "GPTPIPE_STORAGE"),
        ("GPTPIPE_TIMEZONE", "Europe/Berln", "settings", "GPTPIPE_TIMEZONE=Europe/Berln", "Europe/Berlin"),
        ("GPTPIPE_TIMEZONE", "../etc/passwd", "settings", "is no time zone", "Europe/Berlin"),
        ("GPTPIPE_NIGHTLY_CRON", "0 25 * * *", "settings", "GPTPIPE_NIGHTLY_CRON=0 25 * * *", "0 2 * * *"),
        ("GPTPIPE_CLEAN_CRON", "a b c d e", "settings", "GPTPIPE_CLEAN_CRON", "0 2 * * *"),
        ("GPTPIPE_RETRAIN_CONFIG", "absent.yaml", "settings", "GPTPIPE_RETRAIN_CONFIG: absent.yaml", ""),
        ("GPTPIPE_RETRAIN_CONFIG", "typo.yaml", "settings", "stepps", "steps"),
        ("GPTPIPE_JOBSET", "absent.yaml", "settings", "GPTPIPE_JOBSET=absent.yaml is no file", "jobset.yaml"),
        ("GPTPIPE_GANG_PORTS", "29499-29400", "settings", "holds no port", "lower one first"),
        ("GPTPIPE_GANG_PORTS", "60000-70000", "settings", "holds no port", "lower one first"),
        ("GPTPIPE_GANG_PORTS", "4000-5000", "settings", "lies within GPTPIPE_GANG_PORTS", "move"),
        ("GPTPIPE_PREFECT_PORT", "5000", "settings", "the same port", "GPTPIPE_PREFECT_PORT"),
        ("GPTPIPE_STACK_HOST", "no-such-host.invalid", "settings", "is no address", "127.0.0.1"),
        ("GPTPIPE_STACK_HOST", "192.0.2.7", "settings", "is not this machine", "one of its own"),
        ("GPTPIPE_MLFLOW_URI", "http://127.0.0.1:{closed}", "settings", "registers no model", "s3://"),
        ("GPTPIPE_MLFLOW_URI", "http://127.0.0.1:{closed}", "tracking", "does not answer", "start the MLflow server"),
        ("GPTPIPE_MLFLOW_URI", "sqlite:///damaged.db", "tracking", "not a database", ""),
        ("GPTPIPE_MLFLOW_URI", "postgresql://me:canary@127.0.0.1:{closed}/m", "tracking", "me:***@127", "psycopg"),
        ("GPTPIPE_MLFLOW_URI", "postgresql+psycopg://me:canary@127.0.0.1:{closed}/m", "tracking", "me:***@127", ""),
        ("GPTPIPE_SWEEPS_URI", "sqlite:////nowhere/sweeps.db", "settings", "unable to open", "leave it empty"),
        ("GPTPIPE_SWEEPS_URI", "sqlite:///damaged.db", "settings", "GPTPIPE_SWEEPS_URI", "leave it empty"),
        ("GPTPIPE_MLFLOW_URI", "postgresql+psycopg://me@127.0.0.1:port/m", "tracking", "port", ""),
        ("GPTPIPE_SWEEPS_URI", "postgresql+psycopg://me@127.0.0.1:port/m", "settings", "GPTPIPE_SWEEPS_URI", ""),
        ("GPTPIPE_SWEEPS_URI", "nonsense", "settings", "GPTPIPE_SWEEPS_URI", "leave it empty"),
        ("GPTPIPE_TASK_RUNNER_ADDRESS", "tcp://scheduler:8786", "settings", "set for processes", "dask or ray"),
        ("GPTPIPE_WEBHOOK", "https://no-such-host.invalid/hook", "settings", "no-such-host.invalid", "address"),
        ("GPTPIPE_STORAGE", "file/x", "storage", "file/x", ""),
        ("GPTPIPE_STORAGE", "s3://", "storage", "s3://", ""),
        ("GPTPIPE_S3_ENDPOINT", "http://127.0.0.1:{closed}", "storage", "s3://bucket/x", ""),
        ("PREFECT_API_URL", "http://127.0.0.1:{closed}/api", "prefect", "does not answer", ""),
        ("PREFECT_API_URL", "http://127.0.0.1:{closed}/api", "schedules", "does not answer", ""),
        ("PREFECT_API_URL", "http://127.0.0.1:{closed}/api", "workers", "does not answer", ""),
    ],
)
def test_each_wrong_setting_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, check: str, words: str, hint: str
) -> None:
    (folder / "typo.yaml").write_text("train: {stepps: 3}\n")
    (folder / "damaged.db").write_text("this is a text, and no database\n" * 100)
    (folder / "file").write_text("")
    if variable == "GPTPIPE_S3_ENDPOINT":
        monkeypatch.setenv("GPTPIPE_STORAGE", "s3://bucket/x")
    monkeypatch.setenv(variable, value.format(closed=free_ports(1)[0]))
    found = examined(check)
    assert any(each.ok is False and words in each.detail for each in found), found
    assert any(hint in f"{each.detail} {each.hint}" for each in found), found
    assert "canary" not in str(found)


@pytest.mark.parametrize("wrong", ["keys", "bucket"])
def test_an_object_store_that_does_not_take_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, s3: S3Server, wrong: str
) -> None:
    for name, value in s3.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPTPIPE_STORAGE", f"s3://{s3.bucket}/x")
    assert examined("storage")[0].ok
    if wrong == "keys":
        monkeypatch.setenv("GPTPIPE_S3_SECRET_KEY", f"canary-{secrets.token_hex(8)}")
    else:
        monkeypatch.setenv("GPTPIPE_STORAGE", "s3://no-such-bucket/x")
    (check,) = examined("storage")
    assert check.ok is False
    assert check.hint
    assert "canary" not in str(check)


def test_a_file_with_secrets_that_others_may_read_is_found(folder: Path) -> None:
    (folder / ".env").write_text("GPTPIPE_S3_SECRET_KEY=x\n")
    (folder / ".env").chmod(0o644)
    (check,) = examined("settings")
    assert (check.ok, check.hint) == (False, "chmod 600 .env")
    (folder / ".env").chmod(0o600)
    assert examined("settings")[0].ok


def test_a_database_of_a_newer_mlflow_is_found(folder: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, folder / ".gptpipe" / "mlflow.db")
    with sqlite3.connect(folder / ".gptpipe" / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
    (check,) = examined("tracking")
    assert check.ok is False


def test_a_disk_that_is_nearly_full_is_found(folder: Path) -> None:
    place = folder / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is refused here: {mounted.stderr.strip()}")
    try:
        os.environ["GPTPIPE_HOME"] = str(place)
        (check,) = examined("machine")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert (check.ok, check.hint) == (False, "free some disk space")


def test_the_command_ends_with_1_where_something_is_wrong(folder: Path) -> None:
    done = subprocess.run(
        [GPTPIPE, "doctor"], env={**os.environ, "GPTPIPE_STORGE": "x"}, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 1
    assert "FAIL settings     no setting is called GPTPIPE_STORGE — is GPTPIPE_STORAGE meant?" in done.stdout
