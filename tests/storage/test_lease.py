"""Whether a process that left its description behind still runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptpipe import storage
from gptpipe.storage import lease
from gptpipe.storage.lease import Held, Lease, lives, this_process

PROGRAM = "import json; from gptpipe.storage.lease import this_process; print(json.dumps(this_process()))"


def test_a_process_lives_is_gone_or_cannot_be_seen() -> None:
    here = this_process()
    assert lives(here) is True
    assert lives({**here, "started": here["started"] - 100}) is False  # another one took its number
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert lives({**here, "pid": json.loads(ended.stdout)["pid"]}) is False
    assert lives({**here, "host": "another"}) is None
    assert lives({**here, "space": "pid:[1]"}) is None  # a container of the same host name: its numbers are its own


def elsewhere(folder: Path, until: float, token: str = "theirs") -> None:
    """A lease that a process of another machine wrote, whose clock may differ."""
    holder = {**this_process(), "host": "another", "token": token, "user": "somebody", "until": until}
    storage.write_json(str(folder / "lease.json"), holder)


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_holder_whose_clock_differs_is_not_taken_for_gone(
    off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.5)
    elsewhere(tmp_path, time.time() + off)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.3):
            elsewhere(tmp_path, time.time() + off)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    with pytest.raises(Held, match="somebody@another"), Lease(str(tmp_path)):
        pass
    stop.set()
    thread.join()
    with Lease(str(tmp_path)):  # now nobody renews it
        assert storage.read_json(str(tmp_path / "lease.json"))["host"] != "another"


def test_who_was_taken_for_gone_does_not_take_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.2)
    with Lease(str(tmp_path)):
        elsewhere(tmp_path, time.time() + 60)
        time.sleep(1)
        assert "another process took over" in caplog.text
    assert storage.read_json(str(tmp_path / "lease.json"))["token"] == "theirs"
