"""The GPT: embeddings, blocks, an output layer that is tied to them or not, and the loss.

What differs between the architectures is in `gpt2.py` and `qwen3.py`, and in how positions come in, which is here:
GPT-2 adds embeddings of them (Radford et al. 2019), in Qwen3 they turn queries and keys (Yang et al. 2025).

Shapes: B batch, T tokens, C width (n_embd), V vocabulary. Module names are those of GPT-2's published weights in both;
linear layers hold (out, in) as torch does, where GPT-2's files hold (in, out).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptpipe.config import ModelConfig
from gptpipe.model import gpt2, qwen3
from gptpipe.model.layers import Embedding, LayerNorm, Linear, RMSNorm
from gptpipe.model.loss import SharedGradient, linear_cross_entropy, tied_embedding

Block = gpt2.Block | qwen3.Block


class GPT(nn.Module):
    """A language model of either architecture, initialised from torch's global generator.

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
        self.ln_f: LayerNorm | RMSNorm
        if config.architecture == "gpt2":
            self.wpe = Embedding(config.context_length, config.n_embd)
            self.drop = nn.Dropout(config.dropout)
            self.h = nn.ModuleList(gpt2.Block(config) for _ in range(config.n_layer))
            self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        else:
            self.h = nn.ModuleList(qwen3.Block(config) for _ in range(config.n_layer))
            self.ln_f = RMSNorm(config.n_embd, config.layer_norm_epsilon)
        # a tied one is not made only to be thrown away: that is the largest piece of memory a small model has
        place = "meta" if config.tie_weights else None
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False, device=place)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        if config.init != "torch" and not self.wte.weight.is_meta:
            self._init_gpt2()

    @torch.no_grad()
    def _init_gpt2(self) -> None:
        """normal(0, 0.02) for matrices, residual projections scaled by 1 / sqrt(2 n_layer) or zero, biases zero."""
        scaled = 0.02 / math.sqrt(2 * self.config.n_layer) if self.config.init == "gpt2" else 0.0
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
        x, given = self._positioned(words, torch.arange(t, device=tokens.device))
        again = self.recompute and torch.is_grad_enabled()
        for block in self.h:
            x = checkpoint(block, x, *given, use_reentrant=False) if again else block(x, *given)
        result: Tensor = self.ln_f(x)
        return result

    def _positioned(self, words: Tensor, positions: Tensor) -> tuple[Tensor, tuple[qwen3.Rotation, ...]]:
        """What the first block sees, and what every block is given beside it."""
        if self.config.architecture == "gpt2":
            return self.drop(words + self.wpe(positions)), ()
        # a half-precision embedding is float32 from here on, as the sum with that of positions is
        return words.to(torch.promote_types(words.dtype, torch.float32)), (qwen3.rotation(self.config, positions),)

    def count_parameters(self) -> int:
        """All parameters, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def matrices(self) -> dict[Tensor, list[int]]:
        """Parameters of the blocks that are several matrices, one below the other, with their numbers of rows."""
        config, found = self.config, dict[Tensor, list[int]]()
        queries, keys = config.n_head * config.head_width, config.kv_heads * config.head_width
        for block in cast(list[Block], self.h):
            found[block.attn.c_attn.weight] = [queries, keys, keys]
            if config.architecture == "qwen3":
                found[block.mlp.c_fc.weight] = [config.inner, config.inner]
        return found

    def flops_per_token(self) -> int:
        """FLOPs of one training token, forward and backward: 6 N + 12 · n_layer · width of all heads · context.

        N are the parameters in matrix products: embedding look-ups left out, the output layer counted once
        (Kaplan et al. 2020; Chowdhery et al. 2022, appendix B).
        """
        c = self.config
        embeddings = 0 if c.tie_weights else self.wte.weight.numel()
        if c.architecture == "gpt2":
            embeddings += self.wpe.weight.numel()
        return 6 * (self.count_parameters() - embeddings) + 12 * c.n_layer * c.n_head * c.head_width * c.context_length


def empty_model(config: ModelConfig) -> GPT:
    """A model with shapes and no numbers, on the meta device."""
    with torch.device("meta"):
        return GPT(config)
