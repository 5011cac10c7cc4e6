"""A process that runs flows in a home is known there until it is gone, also where it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gptpipe.services.users import join_alone

SCRIPT = "from flows import begin; begin(); print('begun', flush=True); input()"


def test_who_runs_flows_is_not_alone_and_a_killed_one_is_no_user(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "prefect"
    assert join_alone(folder)[1]
    environment = os.environ | {"GPTPIPE_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(folder)}
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert script.stdout is not None
        assert script.stdout.readline() == b"begun\n"
        assert not join_alone(folder)[1]
    finally:
        script.kill()
        script.communicate()
    assert join_alone(folder)[1]
