"""What is said of GPUs that cannot be used, are too old, too few, or full."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.errors import UserError
from gptpipe.launch.training import check_devices
from gptpipe.model import gpus, precision
from gptpipe.model.gpus import has_unused_gpu, memory_said, why_no_gpu
from gptpipe.model.precision import Precision, pick_device
from gptpipe.train.distributed import Ranks
from gptpipe.train.runtime import check_memory
from tests.fixtures.gpu import Memory

OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
CUDA = torch.device("cuda", 0)


def no_gpu(monkeypatch: pytest.MonkeyPatch, reason: str, cuda: str | None = "13.0") -> None:
    """A torch built for this CUDA that finds no GPU."""

    def init() -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    ("reason", "cuda", "said"),
    [
        (
            OLD,
            "13.0",
            "The NVIDIA driver on your system is too old (found version 11040) — update the driver to one for CUDA "
            "13.0, or install an older torch",
        ),
        ("Found no NVIDIA driver on your system. Please", "13.0", "Found no NVIDIA driver on your system — see what"),
        ("", None, "this torch is the build for CPUs — install torch's build for CUDA, or choose auto or cpu"),
    ],
)
def test_a_gpu_that_is_asked_for_and_cannot_be_used_is_one_line(
    reason: str, cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch, reason, cuda)
    for ask in (lambda: pick_device("cuda"), lambda: check_devices(TrainConfig(device="cuda"))):
        with pytest.raises(UserError) as raised:
            ask()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_gpu_that_lies_idle_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_gpu(monkeypatch, OLD)
    assert not has_unused_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_unused_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_unused_gpu(tmp_path)
    monkeypatch.setattr(precision.gpus, "has_unused_gpu", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert pick_device("auto") == "cpu"
    [said] = [record.message for record in caplog.records]
    assert said.startswith("the CPU is used, though there is a GPU: The NVIDIA driver on your system is too old (found")
    monkeypatch.setattr(torch.version, "cuda", None)  # the build for CPUs was chosen
    assert not has_unused_gpu(tmp_path)
    assert why_no_gpu()[0] == "this torch is the build for CPUs"


def test_a_gpu_too_old_for_bfloat16_is_refused_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    assert Precision.choose("auto", CUDA).name == "float32"
    with pytest.raises(UserError, match=r"on Tesla V100: this GPU has no units for bfloat16.* float32"):
        Precision.choose("bfloat16", CUDA)


def test_more_ranks_than_gpus_is_said_before_any_of_them_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("they met"))
    with pytest.raises(UserError, match=r"2 ranks with a GPU each, and 1 GPU in this host — set train\.nproc=1"):
        Ranks.join("cuda")


class Nvml(ModuleType):
    """NVML's library, on a GPU that this process and another use."""

    class NVMLError(Exception):
        pass

    def __init__(self, processes: list[tuple[int, int]], fails: bool = False) -> None:
        super().__init__("pynvml")
        self._processes, self._fails = processes, fails

    def nvmlInit(self) -> None:
        if self._fails:
            raise self.NVMLError("no permission")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> bytes:
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: bytes) -> list[Any]:
        assert handle == b"GPU-1234"
        return [type("Process", (), {"pid": pid, "usedGpuMemory": size})() for pid, size in self._processes]


def test_a_gpu_that_others_fill_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, 141e9, others=139e9)
    properties = type("Properties", (), {"uuid": "1234", "total_memory": int(141e9)})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    own, other = psutil.Process(), psutil.Process().parent()
    assert other is not None
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([(own.pid, 10**9), (other.pid, 138 * 10**9)]))
    named = f"process {other.pid} ({other.name()}) holds 138.0"
    assert memory_said(CUDA) == f"2.0 of 141.0 GB are free, {named}"
    with pytest.raises(UserError) as raised:
        check_memory(TrainConfig(), ModelConfig(), Ranks(0, 0, 1, 1, CUDA), "bfloat16")
    said = str(raised.value)
    assert "GB, and 2.0 of 141.0 GB are free, " + named in said
    assert "choose another GPU by CUDA_VISIBLE_DEVICES" in said
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([], fails=True))
    assert memory_said(CUDA) == "2.0 of 141.0 GB are free"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # the extra `gpu` is not installed
    assert memory_said(CUDA) == "2.0 of 141.0 GB are free"
    assert gpus.is_available() is False
