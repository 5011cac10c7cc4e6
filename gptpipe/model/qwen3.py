"""Qwen3's blocks (Yang et al. 2025): RMS norms, also on queries and keys, rotary positions, a gated MLP, no biases.

Queries, keys and values are one matrix, and so are the gate and what it gates. Shapes: B batch, T tokens, C width, H
heads of queries, K heads of keys and values, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gptpipe.config import ModelConfig
from gptpipe.model.layers import Linear, RMSNorm, rms_norm, rms_norm_backward
from gptpipe.model.lean import is_lean, linear, norm_linear

Rotation = tuple[Tensor, Tensor]


def rotation(config: ModelConfig, positions: Tensor) -> Rotation:
    """Cosines and sines by which features of tokens at these positions are turned (Su et al. 2021).

    Args:
        positions: (T,), int64.

    Returns:
        Two of (T, 1, D / 2), float32. Feature i is turned together with feature i + D / 2.
    """
    steps = torch.arange(0, config.head_width, 2, device=positions.device).float() / config.head_width
    angles = positions.float()[:, None] * (1.0 / config.rope_base**steps)
    return angles.cos()[:, None], angles.sin()[:, None]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _NormTurn(torch.autograd.Function):
    """Queries and keys normed and turned; only what they were is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        normed, rstd = rms_norm(x.float(), scales, eps)
        ctx.save_for_backward(x, rstd, scales, cos, sin)
        return _turned(normed, cos, sin).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, scales, cos, sin = ctx.saved_tensors
        by_normed = _turned(grad.float(), cos, -sin)
        unit = x.float() * rstd
        by_scales = (by_normed * unit).flatten(0, -3).sum(0)
        by_x, _ = rms_norm_backward(by_normed, unit, rstd, scales)
        return by_x.to(x.dtype), by_scales, None, None, None


class Attention(nn.Module):
    """Causal self-attention of grouped queries (Ainslie et al. 2023) behind its norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.kv_heads, self.size = config.n_head, config.kv_heads, config.head_width
        self.c_attn = Linear(config.n_embd, config.qkv_width, bias=False)
        self.c_proj = Linear(self.n_head * self.size, config.n_embd, bias=False)
        self.q_norm = RMSNorm(self.size, config.layer_norm_epsilon)
        self.k_norm = RMSNorm(self.size, config.layer_norm_epsilon)

    def forward(self, x: Tensor, norm: RMSNorm, turn: Rotation) -> Tensor:
        b, t, _ = x.shape
        qkv = norm_linear(x, norm, self.c_attn).view(b, t, -1, self.size)
        query, key, value = (each.transpose(1, 2) for each in self.split(qkv, turn))
        if self.kv_heads < self.n_head:
            key, value = (each.repeat_interleave(self.n_head // self.kv_heads, 1) for each in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return linear(out.transpose(1, 2).reshape(b, t, -1), self.c_proj)

    def split(self, qkv: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (…, T, H, D) and keys (…, T, K, D), normed and turned, and values, of (…, T, H + 2 K, D)."""
        both, value = torch.split(qkv, [self.n_head + self.kv_heads, self.kv_heads], dim=-2)
        q_scale, k_scale = (norm.weight.float() for norm in (self.q_norm, self.k_norm))
        scales = torch.cat([q_scale.expand(self.n_head, -1), k_scale.expand(self.kv_heads, -1)])
        if is_lean():
            ready = _NormTurn.apply(both, scales, *turn, self.q_norm.eps)  # type: ignore[no-untyped-call]
        else:
            ready = _turned(rms_norm(both.float(), scales, self.q_norm.eps)[0], *turn).to(qkv.dtype)
        query, key = torch.split(ready, [self.n_head, self.kv_heads], dim=-2)
        return query, key, value


class MLP(nn.Module):
    """A layer whose first half gates its second, and one behind it (SwiGLU, Shazeer 2020), behind their norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 2 * config.inner, bias=False)
        self.c_proj = Linear(config.inner, config.n_embd, bias=False)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return linear(norm_linear(x, norm, self.c_fc), self.c_proj, "gated")


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: Rotation) -> Tensor:
        x = x + self.attn(x, self.ln_1, turn)
        result: Tensor = x + self.mlp(x, self.ln_2)
        return result
