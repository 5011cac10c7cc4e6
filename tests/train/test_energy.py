"""Energy is counted where the device counts it. RAPL's files are stood in for: few machines let a test read them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptpipe.train.distributed import Ranks
from gptpipe.train.energy import EnergyMeter

RANGE = 262_143_328_850


def package(folder: Path, number: int, microjoules: int, name: str = "package-0") -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone / "energy_uj"


def ranks(local_rank: int = 0, device: str = "cpu") -> Ranks:
    return Ranks(local_rank, local_rank, 2, 2, torch.device(device))


def test_packages_are_added_up_and_go_over_their_range(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 5_000_000), package(tmp_path, 1, RANGE - 1_000_000, "package-1")
    package(tmp_path, 2, 77, "psys")
    meter = EnergyMeter(ranks(), tmp_path)
    assert meter.since_last() == 0
    first.write_text("7500000\n")
    second.write_text("999999\n")
    assert meter.since_last() == pytest.approx(2.5 + 2.0)
    assert meter.since_last() == 0


def test_one_rank_of_a_host_counts(tmp_path: Path) -> None:
    counter = package(tmp_path, 0, 0)
    meters = [EnergyMeter(ranks(number), tmp_path) for number in (0, 1)]
    counter.write_text("1000000\n")
    assert [meter.since_last() for meter in meters] == [1.0, 0.0]


def test_what_is_not_counted_all_the_time_is_no_number(tmp_path: Path) -> None:
    """Half of a training's energy would be taken for the whole."""
    counter = package(tmp_path, 0, 0)
    meter = EnergyMeter(ranks(), tmp_path)
    counter.write_text("not a number")
    assert math.isnan(meter.since_last())
    counter.write_text("9000000")
    assert math.isnan(meter.since_last())
    assert math.isnan(EnergyMeter(ranks(), tmp_path / "none").since_last())
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    assert math.isnan(EnergyMeter(ranks(), tmp_path).since_last())


class NVMLError(Exception):
    pass


def test_a_gpu_is_asked_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts millijoules, and numbers GPUs otherwise than CUDA does."""
    total, asked = [1_000_000], list[bytes]()

    def refuse(*_: object) -> int:
        raise NVMLError("not supported")

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: total[0],
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"1-2-{device.index}"))
    meter = EnergyMeter(ranks(device="cuda:1"))
    total[0] += 2_500
    assert meter.since_last() == 2.5
    assert asked == [b"GPU-1-2-1"]
    monkeypatch.setattr(library, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    assert math.isnan(meter.since_last())
    assert math.isnan(EnergyMeter(ranks(device="cuda:1")).since_last())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert math.isnan(EnergyMeter(ranks(device="cuda:1")).since_last())
