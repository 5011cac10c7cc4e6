"""Devices and the precision of what is computed on them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from gptpipe.errors import UserError
from gptpipe.model import gpus
from gptpipe.model.gpt import GPT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The autocast of the forward pass; weights, gradients and moments are float32 whatever it is."""

    name: str
    device: str

    @classmethod
    def choose(cls, precision: str, device: torch.device) -> Precision:
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(device) else "float32"
        if precision == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
            raise UserError(
                "this GPU has no units for bfloat16, it would be slower than float32",
                where=f"precision bfloat16 on {torch.cuda.get_device_name(device)}",
                hint="choose precision auto or float32",
            )
        return cls(precision, device.type)

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


def pick_device(device: str) -> str:
    """`auto` is a GPU where torch sees one.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    if device == "auto":
        if gpus.has_unused_gpu():
            log.warning("the CPU is used, though there is a GPU: %s — %s", *gpus.why_no_gpu())
        return "cuda" if gpus.is_available() else "cpu"
    if device == "cuda" and not gpus.is_available():
        reason, hint = gpus.why_no_gpu()
        raise UserError(reason, where="device cuda", hint=f"{hint}, or choose auto or cpu")
    return device


def to_precision(model: GPT, precision: str) -> GPT:
    """Large matrices in that type, in place; embeddings of positions, norms and what flows between blocks stay float32.

    Half the memory, and no matrix is converted at every step as autocast alone would.
    """
    if precision == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.Linear) or module is model.wte:
                for parameter in module.parameters():
                    parameter.data = parameter.data.bfloat16()
    return model
