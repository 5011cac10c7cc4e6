"""The GPT: GPT-2's architecture (Radford et al. 2019), pre-norm, GELU tanh, learned positions.

Shapes: B batch, T tokens, C width (n_embd), H heads, D head size (C / H), V vocabulary. Module names are those
of GPT-2's published weights; linear layers hold (out, in) as torch does, where GPT-2's files hold (in, out).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptpipe.config import ModelConfig
from gptpipe.model.layers import Embedding, LayerNorm, Linear
from gptpipe.model.lean import linear, norm_linear
from gptpipe.model.loss import SharedGradient, linear_cross_entropy, tied_embedding


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
        result: Tensor = self.dropout(linear(norm_linear(x, norm, self.c_fc), self.c_proj, gelu=True))
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


class GPT(nn.Module):
    """A GPT-2-family language model, initialised from torch's global generator.

    With `init="torch"` every layer keeps torch's default initialisation, drawn in the order of the book's model
    (embeddings, blocks, output layer), so that after the same seed the weights have the same bits.

    Attributes:
        recompute: whether a backward pass computes each block's activations again instead of keeping them (Chen et
            al. 2016).
    """

    recompute = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.context_length, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        # a tied one is not made only to be thrown away: that is the largest piece of memory a small model has
        place = "meta" if config.tie_weights else None
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False, device=place)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        if config.init == "gpt2" and not self.wte.weight.is_meta:
            self._init_gpt2()

    @torch.no_grad()
    def _init_gpt2(self) -> None:
        """normal(0, 0.02) for matrices, residual projections scaled by 1 / sqrt(2 n_layer), biases zero."""
        scaled = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, scaled if name.endswith("c_proj.weight") else 0.02)
            elif name.endswith("bias"):
                parameter.zero_()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits, or the summed loss.

        Args:
            tokens: (B, T), int64, T at most the context.
            targets: (B, T), int64, -100 where a token is not scored.

        Returns:
            Without targets, logits (B, T, V); with targets, the sum of the cross-entropies in nats (a scalar).
        """
        if targets is None:
            logits: Tensor = self.lm_head(self.hidden(tokens))
            return logits
        shared = SharedGradient() if self.config.tie_weights and torch.is_grad_enabled() else None
        hidden = self.hidden(tokens, shared)
        return linear_cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, targets.flatten(), shared)

    def hidden(self, tokens: Tensor, shared: SharedGradient | None = None) -> Tensor:
        """What the output layer sees, (B, T, C)."""
        t = tokens.shape[1]
        if t > self.config.context_length:
            raise ValueError(f"{t} tokens do not fit into a context of {self.config.context_length}")
        words = self.wte(tokens) if shared is None else tied_embedding(self.wte.weight, tokens, shared)
        x = self.drop(words + self.wpe(torch.arange(t, device=tokens.device)))
        again = self.recompute and torch.is_grad_enabled()
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        result: Tensor = self.ln_f(x)
        return result

    def count_parameters(self) -> int:
        """All parameters, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """FLOPs of one training token, forward and backward: 6 N + 12 · n_layer · n_embd · context.

        N are the parameters in matrix products: embedding look-ups left out, the output layer counted once
        (Kaplan et al. 2020; Chowdhery et al. 2022, appendix B).
        """
        c = self.config
        embeddings = self.wpe.weight.numel() + (0 if c.tie_weights else self.wte.weight.numel())
        return 6 * (self.count_parameters() - embeddings) + 12 * c.n_layer * c.n_embd * c.context_length


def empty_model(config: ModelConfig) -> GPT:
    """A model with shapes and no numbers, on the meta device."""
    with torch.device("meta"):
        return GPT(config)
