"""Energy that a rank's device uses, where the device counts it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gptpipe.train.distributed import Ranks

log = logging.getLogger(__name__)
POWERCAP = Path("/sys/class/powercap")  # of Linux; most machines let only root read it
Counter = Callable[[], float]


class EnergyMeter:
    """Joules of this rank's device.

    A GPU of Volta's generation or newer counts its own since the driver was loaded, and NVML tells. Of a CPU Linux
    tells what each package has used (RAPL); the first rank of a host takes all packages for its own, whatever else
    runs on them, and the others none. The energy of a device that counts nothing, may not be asked, or has once not
    answered is not a number: no sum is better than one that leaves a device out.
    """

    def __init__(self, ranks: Ranks, powercap: Path | None = None) -> None:
        self._counters: list[Counter] = []
        if ranks.device.type == "cuda":
            self._counters = _of_gpu(ranks.device)
        elif ranks.local_rank == 0:
            self._counters = _of_packages(powercap or POWERCAP)
        self._counts = bool(self._counters) or (ranks.device.type == "cpu" and ranks.local_rank > 0)
        self._last = 0.0
        self.since_last()

    def since_last(self) -> float:
        """Joules since this was called last."""
        try:
            now = sum(counter() for counter in self._counters)
        except (OSError, ValueError) as error:
            log.debug("energy is not counted any more: %s", error)
            self._counts, self._counters = False, []
        if not self._counts:
            return math.nan
        used, self._last = now - self._last, now
        return used


def _of_gpu(device: torch.device) -> list[Counter]:
    """The counter of a GPU; none without NVML's library, the right to ask, or a GPU that counts."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        log.debug("energy is not counted: %s", error)
        return []
    return [_Gpu(pynvml, handle)]


class _Gpu:
    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def __call__(self) -> float:
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._library.NVMLError as error:
            raise OSError(str(error)) from error


def _of_packages(powercap: Path) -> list[Counter]:
    """A counter for each processor package that can be read."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package"):
                counters.append(_Package(zone))
    return list(counters)


class _Package:
    """One package's counter, which begins at zero again after its range, a matter of minutes to hours."""

    def __init__(self, zone: Path) -> None:
        self._file, self._range = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
        self._last, self._total = int(self._file.read_text()), 0

    def __call__(self) -> float:
        now = int(self._file.read_text())
        self._total += (now - self._last) % (self._range + 1)
        self._last = now
        return self._total / 1e6
