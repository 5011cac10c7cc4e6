"""What a device can do at most, in FLOP/s: the denominator of MFU."""

from __future__ import annotations

import time

import torch

# Dense bfloat16 rates of the data sheets, by a part of the device's name.
_BFLOAT16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "B200": 2250e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The data sheet's rate of a known GPU, otherwise the best of a few matrix products made now."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, rate in _BFLOAT16.items():
            if part in name:
                return rate
    return _measure(device, dtype)


_SECONDS = 0.3  # long enough to meet a moment when nothing else uses the cores


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    n = 1024 if device.type == "cpu" else 8192
    a = torch.ones(n, n, dtype=dtype, device=device)
    best = float("inf")
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
