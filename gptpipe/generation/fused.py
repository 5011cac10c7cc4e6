"""Whether the fused kernels of a decoding step run on a device: they are tried once per process."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from gptpipe.model.fused import might_run, tried


def decoding_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """`gptpipe.generation.kernels`, where its kernels take matrices of that type on that device; else None."""
    return _decoding_kernels(device, dtype) if might_run(device) else None


@cache
def _decoding_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    def attempt() -> tuple[ModuleType, bool]:
        from gptpipe.generation import kernels

        right = True
        for rows in (1, 2):  # one row takes another way than several
            x = (torch.arange(rows * 32.0, device=device).view(rows, 32) / 32).to(dtype)
            weight = 2 * torch.eye(48, 32, device=device, dtype=dtype)
            total = torch.ones(rows, 48, device=device)
            kernels.add_linear_(total, x, weight, None)
            right &= torch.allclose(total[:, :32], 2 * x.float() + 1, atol=1e-2)
            qkv = torch.ones(rows, 3, 1, 16, device=device, dtype=dtype)
            keys, values = torch.zeros(2, rows, 1, 8, 16, device=device, dtype=dtype)
            positions = torch.zeros(rows, dtype=torch.int64, device=device)
            right &= bool((kernels.attended(qkv, keys, values, positions) == 1).all())
        return kernels, right

    return tried("decoding", attempt)
