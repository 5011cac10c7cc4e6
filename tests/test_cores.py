"""The cores that a process may use: affinity, and quotas of control groups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptpipe.cores import usable_cores

HERE = len(os.sched_getaffinity(0))


def test_affinity_counts() -> None:
    program = "from gptpipe.cores import usable_cores; print(usable_cores())"
    one = subprocess.run(
        ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert one.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("50000 100000", 1), ("100000 100000", 1), ("110000 100000", min(2, HERE)), ("max 100000", HERE), ("", HERE)],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    (tmp_path / "jobs" / "mine" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "jobs" / "cpu.max").write_text(quota)  # that of the group around it holds too
    membership = tmp_path / "cgroup"
    membership.write_text("0::/jobs/mine\n")
    assert usable_cores(tmp_path, membership) == cores


@pytest.mark.parametrize(("quota", "cores"), [(50000, 1), (150000, min(2, HERE)), (-1, HERE)])
def test_quota_of_version_1(tmp_path: Path, quota: int, cores: int) -> None:
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(str(quota))
    (folder / "cpu.cfs_period_us").write_text("100000")
    membership = tmp_path / "cgroup"
    membership.write_text("9:name=systemd:/\n4:cpu,cpuacct:/job\n")
    assert usable_cores(tmp_path, membership) == cores
