"""A real object store behind a door at which something goes wrong for a while: asked again, or told in a line."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.storage.lease import Held, Lease
from tests.fixtures.bad_store import BadStore, bad_store
from tests.fixtures.environment import begin_again
from tests.fixtures.s3 import S3Server

CONTENT = os.urandom(300_000)


@pytest.fixture
def door(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadStore]:
    with bad_store(s3.endpoint) as door:
        for name, value in s3.settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GPTPIPE_S3_ENDPOINT", door.url)
        begin_again()
        yield door


@pytest.fixture
def url(s3: S3Server) -> str:
    return f"s3://{s3.bucket}/{secrets.token_hex(8)}/object"


@pytest.mark.parametrize("fault", ["503", "500", "cut", "short", "lost", "twice", "slow"])
def test_what_lasts_a_moment_is_asked_again(door: BadStore, url: str, fault: str) -> None:
    door.begin(fault, requests=1)
    storage.write_bytes(url, CONTENT)
    door.begin(fault, requests=1)
    assert storage.read_bytes(url) == CONTENT
    assert door.hits[fault]


@pytest.mark.parametrize(
    "fault", ["403", *[pytest.param(each, marks=pytest.mark.slow) for each in ("500", "503", "cut")]]
)
def test_what_lasts_is_a_line_with_where_and_what_to_do(door: BadStore, url: str, fault: str) -> None:
    storage.write_bytes(url, CONTENT)
    door.begin(fault, 600)
    for ask in (lambda: storage.read_bytes(url), lambda: storage.write_bytes(url, b"")):
        with pytest.raises(UserError) as refused:
            ask()
        assert url.rpartition("/")[0] in refused.value.where
        assert refused.value.hint
        assert "\n" not in str(refused.value)


def test_an_answer_that_is_cut_short_is_never_taken_for_the_whole(door: BadStore, url: str, tmp_path: Path) -> None:
    storage.write_bytes(url, CONTENT)
    door.begin("short", 60)
    with pytest.raises(UserError, match="did not answer"):
        assert storage.read_bytes(url) == CONTENT


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_a_lease_that_the_store_gave_without_being_heard_is_its_own(door: BadStore, url: str, fault: str) -> None:
    folder = storage.parent(url)
    door.begin(fault, requests=1)
    with Lease(folder):
        assert door.hits[fault]
        others: list[BaseException] = []

        def try_it() -> None:
            try:
                with Lease(folder):
                    pass
            except Held as error:
                others.append(error)

        other = threading.Thread(target=try_it)
        other.start()
        other.join()
        assert len(others) == 1
    assert not storage.exists(storage.join(folder, "lease.json"))
