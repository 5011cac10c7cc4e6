"""Devices and the precision of what is computed on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptpipe.errors import UserError


@dataclass(frozen=True)
class Precision:
    """The autocast of the forward pass; weights, gradients and moments are float32 whatever it is."""

    name: str
    device: str

    @classmethod
    def choose(cls, wanted: str, device: torch.device) -> Precision:
        if wanted == "auto":
            wanted = "bfloat16" if has_bfloat16(device) else "float32"
        return cls(wanted, device.type)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.name == "bfloat16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(wanted: str) -> str:
    """`auto` is a GPU where torch sees one.

    Raises:
        UserError: a GPU is wanted, and there is none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here", where="device cuda", hint="choose auto or cpu")
    return wanted
