"""GPT-2's blocks (Radford et al. 2019): layer norms, one matrix for queries, keys and values, GELU, biases.

Shapes: B batch, T tokens, C width, H heads, D head size (C / H).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.config import ModelConfig
from gptpipe.model.layers import LayerNorm, Linear
from gptpipe.model.lean import linear, norm_linear


class Attention(nn.Module):
    """Causal multi-head self-attention behind its norm, the query, key and value projections in one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        b, t, c = x.shape
        qkv = norm_linear(x, norm, self.c_attn).view(b, t, 3, self.n_head, c // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        out = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        out = linear(out.transpose(1, 2).reshape(b, t, c), self.c_proj)
        result: Tensor = self.resid_dropout(out)
        return result


class MLP(nn.Module):
    """Two layers with a GELU between them, behind their norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        result: Tensor = self.dropout(linear(norm_linear(x, norm, self.c_fc), self.c_proj, "gelu"))
        return result


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, self.ln_1)
        result: Tensor = x + self.mlp(x, self.ln_2)
        return result
