"""The shape of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from gptpipe.config.fields import Section, result


class ModelConfig(Section):
    """The shape of a GPT-2-family model (Radford et al. 2019)."""

    vocab_size: int = result(50257, "Number of token ids the model knows", "tokens", ge=2, le=1 << 24)
    context_length: int = result(1024, "Longest sequence the model sees at once", "tokens", ge=1, le=1 << 20)
    n_layer: int = result(12, "Number of transformer blocks", ge=1, le=1024)
    n_head: int = result(12, "Number of attention heads per block; divides n_embd", ge=1, le=1 << 16)
    n_embd: int = result(768, "Width of the residual stream", "features", ge=1, le=1 << 16)
    dropout: float = result(
        0.0, "Dropout after embeddings, on attention weights and on both residual branches", "probability", ge=0, lt=1
    )
    qkv_bias: bool = result(True, "Whether the query, key and value projections have a bias")
    tie_weights: bool = result(True, "Whether the output layer shares its matrix with the token embedding")
    init: Literal["gpt2", "torch"] = result(
        "gpt2",
        "Initial weights: GPT-2's normal(0, 0.02) with scaled residual projections, or torch's defaults",
    )
    layer_norm_epsilon: float = result(1e-5, "Added to the variance in layer norms", gt=0, lt=0.1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.n_embd % self.n_head:
            fitting = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            near = ", ".join(map(str, sorted(sorted(fitting, key=lambda n: abs(n - self.n_head))[:6])))
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}: choose n_head from {near}"
            )
        return self
