"""The cores that a process may use: affinity, and quotas of control groups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A control group of the machine's that may use one core."""
    for root in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        group = root / f"gptpipe-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text("100000 100000")
            else:
                (group / "cpu.cfs_quota_us").write_text("100000")
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group with a quota can be made here")


def test_a_real_quota_counts_and_torch_heeds_it(one_core: Path) -> None:
    if HERE < 2:
        pytest.skip("a machine of one core")
    program = "from gptpipe.config.settings import prepare_environment; prepare_environment(); import torch; "
    program += "from gptpipe.cores import usable_cores; print(usable_cores(), torch.get_num_threads())"
    command = f'echo $$ > {one_core / "cgroup.procs"} && exec "$0" -c "$1"'
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["1", "1"]
