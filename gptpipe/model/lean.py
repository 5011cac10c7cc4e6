"""Linear layers that keep less for the backward pass than autograd would, with the same bits.

Autograd keeps both sides of what stands before a layer, a norm or an activation function; here the one is computed
again from the other (the cheap part of Chen et al. 2016). Under autocast it keeps a copy of every matrix in half
precision too; here that is made again. The compiler does all this by itself, so it gets the plain layers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gptpipe.model.layers import RMSNorm, rms_norm, rms_norm_backward

Activation = Literal["", "gelu", "gated"]
"""What stands before a layer: nothing, the tanh form of GELU, or SiLU of the first half of the features times the
second half (SwiGLU, Shazeer 2020)."""


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation function of x, (…, in); a gated one halves the features."""
    if activation == "gelu":
        return F.gelu(x, approximate="tanh")
    if activation == "gated":
        gate, up = x.chunk(2, dim=-1)
        silu = F.silu(gate)
        return silu * up if torch.is_grad_enabled() else silu.mul_(up)
    return x


def _activated_backward(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """The gradient by x of `activated(x)`."""
    if activation == "gelu":
        by_x: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
        return by_x
    if activation == "gated":
        gate, up = x.chunk(2, dim=-1)
        by_x = torch.empty_like(x)
        by_gate, by_up = by_x.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=by_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=by_gate)
        return by_x
    return grad


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, dtype: torch.dtype
    ) -> Tensor:
        x = x.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.activation = activation
        return _product(activated(x, activation), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        active = activated(x, ctx.activation)
        grad_x, grad_weight, grad_bias = _gradients(grad, active, weight, ctx.needs_input_grad[:3])
        if grad_x is not None:
            grad_x = _activated_backward(grad_x, x, ctx.activation)
        return grad_x, grad_weight, grad_bias, None, None


class _NormLinear(torch.autograd.Function):
    """A layer norm and the layer behind it."""

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


class _RMSNormLinear(torch.autograd.Function):
    """An RMS norm and the layer behind it, which has no bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normed, rstd = rms_norm(x, scale, eps)
        ctx.save_for_backward(x, rstd, scale, weight)
        ctx.dtype = dtype
        return _product(normed.to(dtype), weight, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, scale, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        unit = x * rstd
        grad_normed, grad_weight, _ = _gradients(
            grad, (unit * scale).to(ctx.dtype), weight, (any(needs[:2]), needs[2], False)
        )
        if grad_normed is None:
            return None, None, grad_weight, None, None
        return *rms_norm_backward(grad_normed.to(x.dtype), unit, rstd, scale), grad_weight, None, None


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


def is_lean() -> bool:
    """Whether a backward pass follows whose memory is kept small here, not by the compiler."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def linear(x: Tensor, layer: nn.Linear, activation: Activation = "") -> Tensor:
    """`layer` of the activation function of x.

    Args:
        x: (…, in), twice as many features where it is gated.

    Returns:
        (…, out), in autocast's type where that is on.
    """
    if not is_lean():
        plain: Tensor = layer(activated(x, activation))
        return plain
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Linear.apply(x, layer.weight, layer.bias, activation, dtype)  # type: ignore[no-untyped-call]
    return y


def norm_linear(x: Tensor, norm: nn.LayerNorm | RMSNorm, layer: nn.Linear) -> Tensor:
    """`layer(norm(x))`, the norm in the type of `x`; after an RMS norm a layer has no bias.

    Args:
        x: (…, in).

    Returns:
        (…, out), in autocast's type where that is on.
    """
    if not is_lean():
        plain: Tensor = layer(norm(x))
        return plain
    dtype = _dtype(x)
    y: Tensor
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(norm, RMSNorm):
            y = _RMSNormLinear.apply(x, norm.weight, layer.weight, norm.eps, dtype)  # type: ignore[no-untyped-call]
        else:
            y = _NormLinear.apply(  # type: ignore[no-untyped-call]
                x, norm.weight, norm.bias, layer.weight, layer.bias, norm.eps, dtype
            )
    return y
