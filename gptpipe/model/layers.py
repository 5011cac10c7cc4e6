"""torch's layers, which draw no numbers on the meta device: to find no place for them, torch imports for a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _DrawnIfReal:
    def reset_parameters(self) -> None:
        """Draw the first numbers, where there is a place for them."""
        if not self.weight.is_meta:  # type: ignore[attr-defined]
            super().reset_parameters()  # type: ignore[misc]


class Linear(_DrawnIfReal, nn.Linear):
    """(…, in) to (…, out)."""


class Embedding(_DrawnIfReal, nn.Embedding):
    """Ids to rows."""


class LayerNorm(_DrawnIfReal, nn.LayerNorm):
    """Normalisation over the last axis."""


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last axis, times a scale (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)[0]


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x (…, D), and what x was multiplied by before the scale, (…, 1)."""
    rstd = (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return x * rstd * scale, rstd


def rms_norm_backward(grad: Tensor, unit: Tensor, rstd: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `rms_norm` by its input and its scale.

    Args:
        grad: by what it gave, (…, D).
        unit: the input times `rstd`, (…, D).
    """
    by_scale = (grad * unit).flatten(0, -2).sum(0)
    by_unit = grad * scale
    share = (by_unit * unit).mean(dim=-1, keepdim=True)
    return torch.addcmul(by_unit, unit, share, value=-1).mul_(rstd), by_scale
