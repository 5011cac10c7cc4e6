"""Linear layers that keep less for the backward pass than autograd would, with the same bits.

Autograd keeps both sides of what stands before a layer, a norm or an activation function; here the one is computed
again from the other (the cheap part of Chen et al. 2016). Under autocast it keeps a copy of every matrix in half
precision too; here that is made again. The compiler does all this by itself, so it gets the plain layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        return _product(F.gelu(x, approximate="tanh") if gelu else x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        active = F.gelu(x, approximate="tanh") if ctx.gelu else x
        grad_x, grad_weight, grad_bias = _gradients(grad, active, weight, ctx.needs_input_grad[:3])
        if ctx.gelu and grad_x is not None:
            grad_x = torch.ops.aten.gelu_backward(grad_x, x, approximate="tanh")
        return grad_x, grad_weight, grad_bias, None, None


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, scale.shape, scale, shift, eps)
        ctx.save_for_backward(x, mean, rstd, scale, shift, weight)
        ctx.eps, ctx.dtype = eps, dtype
        return _product(normed.to(dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scale, shift, weight = ctx.saved_tensors
        normed = torch.native_layer_norm(x, scale.shape, scale, shift, ctx.eps)[0].to(ctx.dtype)
        needs = ctx.needs_input_grad
        grad_normed, *grads = _gradients(grad, normed, weight, (any(needs[:3]), *needs[3:5]))
        del normed
        before: tuple[Tensor | None, ...] = (None, None, None)
        if grad_normed is not None:
            before = torch.ops.aten.native_layer_norm_backward(
                grad_normed.to(x.dtype), x, scale.shape, mean, rstd, scale, shift, list(needs[:3])
            )
        return (*before, *grads, None, None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of a product's input, matrix and bias, those that are needed."""
    rows = grad.flatten(0, -2)
    grad_x = (rows @ weight.to(rows.dtype)).view(x.shape) if needs[0] else None
    grad_weight = (rows.t() @ x.flatten(0, -2)).to(weight.dtype) if needs[1] else None
    return grad_x, grad_weight, rows.sum(0).to(weight.dtype) if needs[2] else None


def _lean() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def linear(x: Tensor, layer: nn.Linear, gelu: bool = False) -> Tensor:
    """`layer(x)`, or `layer(gelu(x))` with the tanh form of GELU.

    Args:
        x: (…, in).

    Returns:
        (…, out), in autocast's type where that is on.
    """
    if not _lean():
        plain: Tensor = layer(F.gelu(x, approximate="tanh") if gelu else x)
        return plain
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Linear.apply(x, layer.weight, layer.bias, gelu, dtype)  # type: ignore[no-untyped-call]
    return y


def norm_linear(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """`layer(norm(x))`, the norm in the type of `x`.

    Args:
        x: (…, in).

    Returns:
        (…, out), in autocast's type where that is on.
    """
    if not _lean():
        plain: Tensor = layer(norm(x))
        return plain
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _NormLinear.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.bias, layer.weight, layer.bias, norm.eps, dtype
        )
    return y
