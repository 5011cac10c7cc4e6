"""The object store as a program that somebody keeps alive: it ends where it takes nothing any more."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config

from gptpipe.services.ports import free_ports
from gptpipe.services.seaweedfs import port_names
from tests.fixtures.place import wait_until

WORDS = [sys.executable, "-m", "gptpipe.services.object_store"]


@contextmanager
def store(folder: Path, ports: list[int], patience: int = 2) -> Iterator[tuple[psutil.Popen, Any]]:
    """The program, and a client of it once it takes objects."""
    words = [*WORDS, "--data", str(folder), "--patience", f"{patience}"]
    words += ["--s3-port", str(ports[-1]), "--inner-ports", ",".join(map(str, ports[:-1]))]
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a secret"}
    before = said(folder)
    with (folder / "said.log").open("ab") as log:
        process = psutil.Popen(
            words, env=os.environ | keys | {"S3_BUCKET": "objects"}, stdout=log, stderr=log, start_new_session=True
        )
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{ports[-1]}",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}),
    )
    try:
        wait_until(lambda: said(folder) > before or process.poll() is not None, 60, "objects are taken")
        assert process.poll() is None, (folder / "said.log").read_text()
        yield process, client
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said(folder: Path) -> int:
    """How many times the watch has told that objects are taken."""
    log = folder / "said.log"
    return log.read_text().count("the object store takes objects") if log.exists() else 0


def its_watch(process: psutil.Popen) -> psutil.Process:
    (watch,) = process.children()
    assert "--watch" in watch.cmdline()
    return watch


@pytest.mark.stack
@pytest.mark.slow
def test_a_store_that_takes_nothing_ends_and_keeps_what_it_has(tmp_path: Path) -> None:
    ports = free_ports(len(port_names()) + 1)
    with store(tmp_path, ports) as (process, client):
        watch = its_watch(process)
        client.put_object(Bucket="objects", Key="folder/one", Body=b"kept")
        # it can open nothing more, not even a connection
        limit = process.num_fds()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        process.wait(timeout=120)
        wait_until(lambda: not watch.is_running(), 5, "its watch has ended too")
    log = (tmp_path / "said.log").read_text()
    assert "the object store takes no objects: " in log
    assert "took no objects for 2 s though its disk has room: it is started again" in log
    with store(tmp_path, ports) as (process, client):
        assert client.get_object(Bucket="objects", Key="folder/one")["Body"].read() == b"kept"
        watch = its_watch(process)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        wait_until(lambda: not watch.is_running(), 5, "its watch has ended too")


@pytest.mark.stack
@pytest.mark.slow
def test_a_store_that_is_only_slow_goes_on(tmp_path: Path) -> None:
    with store(tmp_path, free_ports(len(port_names()) + 1), patience=15) as (process, client):
        watch = its_watch(process)
        process.suspend()
        wait_until(lambda: "takes no objects" in (tmp_path / "said.log").read_text(), 30, "it is known")
        process.resume()
        wait_until(lambda: said(tmp_path) == 2, 30, "that is known too")
        assert process.is_running()
        assert watch.is_running()
        client.put_object(Bucket="objects", Key="folder/one", Body=b"kept")
        process.terminate()
        process.wait(timeout=60)
        wait_until(lambda: not watch.is_running(), 5, "its watch has ended too")


@pytest.mark.parametrize(
    ("bucket", "words", "told"),
    [
        ("", [], "S3_BUCKET is not set"),
        ("b", ["--inner-ports", "1,2"], "invalid"),
        ("b", ["--s3-port", "x"], "invalid"),
    ],
)
def test_what_is_missing_is_told_in_a_line(tmp_path: Path, bucket: str, words: list[str], told: str) -> None:
    environment = os.environ | {"S3_BUCKET": bucket}
    done = subprocess.run([*WORDS, "--data", str(tmp_path), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
