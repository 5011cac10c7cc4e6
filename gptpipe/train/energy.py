"""Energy that a rank's device uses, where the device counts it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from gptpipe.train.distributed import Ranks

log = logging.getLogger(__name__)
POWERCAP = Path("/sys/class/powercap")  # of Linux; most machines let only root read it
Counter = Callable[[], float]


class EnergyMeter:
    """Joules of this rank's device.

    A GPU of Volta's generation or newer counts its own since the driver was loaded, and NVML tells. Of a CPU Linux
    tells what each package has used (RAPL); the first rank of a host takes all packages for its own, whatever else
    runs on them. A device that counts nothing, or may not be asked, uses 0.
    """

    def __init__(self, ranks: Ranks, powercap: Path | None = None) -> None:
        self._counters: list[Counter] = []
        if ranks.device.type == "cuda":
            with suppress(Exception):  # no library, no right, an old GPU: training goes on without
                self._counters = [_of_gpu(ranks.device)]
        elif ranks.local_rank == 0:
            self._counters = _of_packages(powercap or POWERCAP)
        self._last = [0.0] * len(self._counters)
        self.since_last()

    def since_last(self) -> float:
        """Joules since this was called last."""
        try:
            now = [counter() for counter in self._counters]
        except Exception as error:  # a counter that fails is given up: no number is better than half of one
            log.debug("energy is not counted any more: %s", error)
            self._counters, self._last = [], []
            return 0.0
        used, self._last = sum(now) - sum(self._last), now
        return used


def _of_gpu(device: torch.device) -> Counter:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


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
