"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def usable_cores(root: Path = _ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that affinity (taskset, SLURM) and the control group's quota (containers, Kubernetes) leave, at least 1.

    A quota of part of a core counts as a whole one. `os.cpu_count()` is the machine's number, whatever a container or
    job may use of it: 64 threads on two cores wait for one another most of the time.

    Args:
        root: where control groups are mounted.
        membership: the file that names this process's groups.
    """
    quotas = [quota for folder in _folders(root, membership) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed_cores(), *(math.ceil(quota) for quota in quotas)]))


def allowed_cores() -> int:
    """Cores that affinity leaves: what torch and OpenMP count by themselves."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's groups and of all groups that these are in: the least quota of them holds."""
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:  # version 2
                top = root
            elif "cpu" in controllers.split(","):  # version 1
                top = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root / "cpu")
            else:
                continue
            inner = Path(path.lstrip("/"))
            yield from (top / part for part in (inner, *inner.parents))


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use; None where nothing limits it."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return quota_us / int((folder / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None
