"""Whether fused kernels can run on a device: they are tried once per process, and left out where they fail."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_OLDEST = (8, 0)  # the first GPUs that Triton says it supports


def loss_kernels(logits: Tensor) -> ModuleType | None:
    """`gptpipe.model.kernels`, where its kernels take such logits on their device; None where they do not."""
    if logits.dtype == torch.float64 or not might_run(logits.device):
        return None
    return _loss_kernels(logits.device)


def might_run(device: torch.device) -> bool:
    """Whether Triton is here and the device is one of its own.

    On a CPU it is where `TRITON_INTERPRET=1` has Python run the kernels, as the tests do.
    """
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and _suits(device)


def can_add_wide(device: torch.device) -> bool:
    """Whether a product of bfloat16 matrices can be added to a float32 one without a copy of either."""
    return device.type == "cuda" and _adds_wide(device)


@cache
def _suits(device: torch.device) -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= _OLDEST


@cache
def _loss_kernels(device: torch.device) -> ModuleType | None:
    def attempt() -> tuple[ModuleType, bool]:
        from gptpipe.model import kernels

        logits = torch.tensor([[0.0, 0.0, 5.0]], device=device)
        nats = kernels.loss_and_gradient_(logits, torch.zeros(1, dtype=torch.int64, device=device), 2, -1)
        expected = torch.tensor([0.6931, -0.5, 0.5, 0.0], device=device)
        return kernels, torch.allclose(torch.cat([nats, logits[0]]), expected, atol=1e-3)

    return tried("loss", attempt)


def tried(what: str, attempt: Callable[[], tuple[ModuleType, bool]]) -> ModuleType | None:
    """The kernels that an attempt returns, if it says that they came to the right numbers; otherwise a warning.

    Args:
        what: the kernels' name in the log.
        attempt: imports the kernels and has them compute something small.
    """
    try:
        kernels, right = attempt()
        if right:
            return kernels
        reason = "they do not come to the right numbers"
    except Exception as error:  # no C compiler, a driver that Triton does not know: whatever it is, torch can do it too
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    log.warning("fused kernels for the %s do not run here, going on with torch's own: %s", what, reason)
    return None


@cache
def _adds_wide(device: torch.device) -> bool:
    try:
        # as the loss does it: a slice that stands on its side, and a first product whose total holds nothing yet
        slopes = torch.full((32, 24), 2.0, dtype=torch.bfloat16, device=device)
        rows = torch.full((32, 16), 2.0, dtype=torch.bfloat16, device=device)
        total = torch.full((20, 16), torch.nan, device=device)
        for beta in (0, 1):
            torch.addmm(total, slopes[:, :20].t(), rows, beta=beta, out_dtype=torch.float32, out=total)
        return bool((total == 256).all())
    except (RuntimeError, TypeError):  # a torch or a GPU that has no such product
        return False
