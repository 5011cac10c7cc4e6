"""The GPUs of this machine: why there is none, how much of one is free and who holds the rest, and which is current."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

_MOST = 3  # processes that are named


def why_no_gpu() -> tuple[str, str]:
    """Why torch sees no GPU, and what to do about it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is the build for CPUs", "install torch's build for CUDA"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        if "too old" in reason:
            return reason, f"update the driver to one for CUDA {torch.version.cuda}, or install an older torch"
        return reason, "see what nvidia-smi says"
    return "torch sees no GPU here", "look at CUDA_VISIBLE_DEVICES and at nvidia-smi"


def has_unused_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine has a GPU of NVIDIA's that torch, built for one, cannot use."""
    return torch.version.cuda is not None and any(devices.glob("nvidia[0-9]*")) and not is_available()


def is_available() -> bool:
    """Whether torch can use a GPU; what it says of an old driver is for `why_no_gpu`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def memory_said(device: torch.device) -> str:
    """`2.1 of 139.8 GB are free, process 4711 (python) holds 120.0`, of a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    others = [f"process {pid} ({name}) holds {size / 1e9:.1f}" for pid, name, size in _others(device)[:_MOST]]
    own = [f"this process holds {held / 1e9:.1f}"] if held else []
    return ", ".join([f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free", *own, *others])


def _others(device: torch.device) -> list[tuple[int, str, int]]:
    """Other processes on a GPU, their names, and the bytes that they hold; none where NVML's library is not here."""
    try:
        import pynvml
    except ImportError:
        return []
    found: list[tuple[int, str, int]] = []
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if each.pid != psutil.Process().pid:
                with suppress(psutil.Error):
                    found.append((each.pid, psutil.Process(each.pid).name(), each.usedGpuMemory or 0))
    return sorted(found, key=lambda each: -each[2])


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """While kernels are started for tensors there: Triton starts them on the current GPU, whatever they are given."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
