"""`gptpipe up` where all runs already: a server that hangs is started again, one that only starts slowly is not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.fixtures.place import folder_for_all, stack_in

pytestmark = [pytest.mark.stack, pytest.mark.slow]


def test_up_starts_a_server_again_that_hangs_but_not_one_that_still_starts() -> None:
    with folder_for_all("again") as folder, stack_in(folder) as place, ThreadPoolExecutor() as beside:
        before = place.listeners()
        server = psutil.Process(before["PREFECT"][1])
        server.suspend()
        again = beside.submit(place.call, "up")
        time.sleep(25)  # it would have been started again by now
        server.resume()
        done = again.result()
        assert done.returncode == 0, done.stderr
        assert place.listeners() == before

        time.sleep(max(0.0, 125 - (time.time() - server.create_time())))
        server.suspend()
        done = place.call("up")
        assert done.returncode == 0, done.stderr
        assert "prefect   runs and does not work: it is started again" in done.stderr
        after = place.listeners()
        assert {name for name in before if before[name][1] != after[name][1]} == {"PREFECT"}
        assert not server.is_running()
        assert place.deployments()
