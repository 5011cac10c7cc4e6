"""Whether a process runs, also one that ended and that nobody waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gptpipe.processes import is_running, start_of


def test_a_process_runs_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = start_of(child.pid)
    assert is_running(child.pid)
    assert is_running(child.pid, started)
    assert not is_running(child.pid, started - 100)  # another one took its number
    child.communicate(b"\n")
    assert not is_running(child.pid)


def test_one_that_nobody_waits_for_does_not_run() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert psutil.pid_exists(child)
        assert not is_running(child, start_of(child))
    finally:
        os.waitpid(child, 0)


CLOCK = """
import os, re, subprocess, sys
from pathlib import Path
import psutil
from gptpipe.processes import is_running, start_of
from gptpipe.storage.lease import lives, this_process

started, by_the_clock, described = start_of(os.getpid()), psutil.Process().create_time(), this_process()
moved = re.sub(r"(?m)^btime ([0-9]+)", lambda match: f"btime {int(match[1]) + 3600}", Path("/proc/stat").read_text())
Path(sys.argv[1]).write_text(moved)
subprocess.run(["mount", "--bind", sys.argv[1], "/proc/stat"], check=True)
assert abs(psutil.Process().create_time() - by_the_clock) > 3000
assert is_running(os.getpid(), started)
assert lives(described) is True
"""


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="a /proc of its own needs root")
def test_nobody_ends_where_the_clock_is_set(tmp_path: Path) -> None:
    """The kernel tells when the machine started by the clock: as it jumps, so does every process's start."""
    subprocess.run(["unshare", "--mount", sys.executable, "-c", CLOCK, str(tmp_path / "stat")], check=True)
