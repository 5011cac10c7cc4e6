"""Cross-entropy of a linear output layer, in chunks: the (B·T, V) logits are never held whole.

The gradients of a chunk are made while its logits are at hand, in the forward pass, so that the backward pass
only scales them (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 512  # measured on two CPU cores: fewer starve the matrix products, more only take memory
IGNORED = -100  # targets that are not scored, as in torch.nn.functional.cross_entropy


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        needs = any(ctx.needs_input_grad[:2])
        cast = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        if hidden.dtype == torch.float64:
            total = total.double()
        grad_hidden = torch.empty_like(hidden) if needs else None
        grad_weight = torch.zeros_like(weight) if needs else None
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            chunk, target = hidden[rows].to(dtype), targets[rows]
            scored = (target != IGNORED).unsqueeze(1)  # (rows, 1)
            index = target.clamp(min=0).unsqueeze(1)
            logits = (chunk @ cast.t()).to(total.dtype)  # (rows, V)
            picked, top = logits.gather(1, index), logits.amax(dim=1, keepdim=True)
            probabilities = torch.softmax(logits, dim=1)
            del logits
            # The likeliest token has probability exp(0) / sum, so this is log-sum-exp without another pass of
            # exponentials, which cost more than the rest together on a CPU.
            log_sum = top - probabilities.amax(dim=1, keepdim=True).log()
            total += torch.where(scored, log_sum - picked, 0).sum()
            if grad_hidden is not None and grad_weight is not None:
                # d loss / d logits = softmax - one-hot, and nothing for targets that are not scored
                slope = probabilities.scatter_add_(1, index, probabilities.new_full(index.shape, -1.0)).to(dtype)
                grad_hidden[rows] = (slope @ cast) * scored
                chunk = chunk * scored
                grad_weight.addmm_(slope.t(), chunk) if dtype == weight.dtype else grad_weight.add_(slope.t() @ chunk)
        ctx.gradients = grad_hidden, grad_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight = ctx.gradients
        return hidden * grad, weight * grad, None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of `softmax(hidden @ weight.T)` at `targets`, in nats.

    Under autocast the products are made in its type; maximum, exponentials and sums are float32 (float64 for
    float64 inputs).

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,), int64; rows with `IGNORED` are not scored.

    Returns:
        A scalar: the sum, not the mean, so that parts of a batch add up to the whole.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)  # type: ignore[no-untyped-call]
    return total
