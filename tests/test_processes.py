"""Whether a process runs, also one that ended and that nobody waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from gptpipe.processes import is_running


def test_a_process_runs_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time()
    assert is_running(child.pid)
    assert is_running(child.pid, started)
    assert not is_running(child.pid, started - 100)  # another one took its number
    child.communicate(b"\n")
    assert not is_running(child.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="no zombies there")
def test_one_that_nobody_waits_for_does_not_run() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert psutil.pid_exists(child)
        assert not is_running(child, psutil.Process(child).create_time())
    finally:
        os.waitpid(child, 0)
