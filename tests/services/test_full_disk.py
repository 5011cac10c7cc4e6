"""The disk of the stack's object store was full, and is not any more."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.chaos.attack import fill
from tests.chaos.trouble import small_disk
from tests.fixtures.place import Place, folder_for_all, stack_in, wait_until

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="root mounts a disk"),
]


def refused(place: Place) -> int:
    """In how many of 32 folders no object can be put."""
    client = place.store()
    count = 0
    for folder in range(32):
        try:
            client.put_object(Bucket="gptpipe", Key=f"{folder}/{time.time_ns()}", Body=b"x" * 1000)
        except (BotoCoreError, ClientError):
            count += 1
    return count


def test_a_store_that_a_full_disk_has_stuck_is_started_again_once_there_is_room() -> None:
    with ExitStack() as whole:
        folder = whole.enter_context(folder_for_all("full"))
        with stack_in(folder):
            pass  # its folders
        data = folder / ".gptpipe" / "stack" / "seaweedfs"
        whole.enter_context(small_disk(data, 1024))
        place = whole.enter_context(stack_in(folder))
        before = place.listeners()
        filler = fill(data)
        wait_until(lambda: refused(place), 90, "a full disk is felt")
        time.sleep(60)
        assert place.listeners() == before, "started again while the disk is full, which helps nobody"
        filler.unlink()
        time.sleep(2)
        assert refused(place), "it comes to itself: then nobody needs to start it again"
        told = place.call("doctor", "--json")
        assert told.returncode == 1
        stack = next(one for one in json.loads(told.stdout)["checks"] if one["name"] == "stack")
        assert stack["ok"] is False
        assert stack["detail"].startswith("seaweedfs ")
        assert "gptpipe up" in stack["hint"]
        wait_until(lambda: not psutil.pid_exists(before["S3"][1]), 90, "the store has ended")
        wait_until(lambda: "S3" in place.listeners() and not refused(place), 60, "it is back and takes all")
        after = place.listeners()
        assert {name for name in before if before[name][1] != after[name][1]} == {"S3"}
        log = (folder / ".gptpipe" / "stack" / "logs" / "seaweedfs.log").read_text(errors="replace")
        assert "took no objects for 30 s though its disk has room: it is started again" in log
