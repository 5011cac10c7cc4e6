"""The shape of the model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from gptpipe.config.fields import Section, result


class ModelConfig(Section):
    """The shape of a model: of GPT-2's family (Radford et al. 2019), or of Qwen3's dense one (Yang et al. 2025)."""

    architecture: Literal["gpt2", "qwen3"] = result(
        "gpt2",
        "GPT-2's, or Qwen3's: rotary positions, norms without bias and on queries and keys, gated MLP, no biases",
    )
    vocab_size: int = result(50257, "Number of token ids the model knows", "tokens", ge=2, le=1 << 24)
    context_length: int = result(1024, "Longest sequence the model sees at once", "tokens", ge=1, le=1 << 20)
    n_layer: int = result(12, "Number of transformer blocks", ge=1, le=1024)
    n_head: int = result(12, "Number of attention heads per block; divides n_embd", ge=1, le=1 << 16)
    n_embd: int = result(768, "Width of the residual stream", "features", ge=1, le=1 << 16)
    n_kv_head: int = result(
        0, "Heads of keys and values, each for n_head / n_kv_head others; 0: n_head; qwen3 only", ge=0, le=1 << 16
    )
    head_size: int = result(0, "Width of a head, even; 0: n_embd / n_head; qwen3 only", "features", ge=0, le=1 << 16)
    n_inner: int = result(
        0,
        "Width inside the MLP; 0: 8/3 n_embd, rounded up to a multiple of 64; qwen3 only, GPT-2's is 4 n_embd",
        "features",
        ge=0,
        le=1 << 20,
    )
    rope_base: float = result(1e4, "Base of the wavelengths of rotary positions; qwen3 only", ge=1, le=1e12)
    dropout: float = result(
        0.0,
        "Dropout after embeddings, on attention weights and on both residual branches; gpt2 only",
        "probability",
        ge=0,
        lt=1,
    )
    qkv_bias: bool = result(True, "Whether the query, key and value projections have a bias; in qwen3 they never have")
    tie_weights: bool = result(True, "Whether the output layer shares its matrix with the token embedding")
    init: Literal["gpt2", "zero", "torch"] = result(
        "gpt2",
        "Initial weights: GPT-2's normal(0, 0.02) with scaled residual projections, the same with these at zero, or "
        "torch's defaults",
    )
    layer_norm_epsilon: float = result(1e-5, "Added to the variance in norms", gt=0, lt=0.1)

    @model_validator(mode="after")
    def _is_a_shape(self) -> ModelConfig:
        own = {"n_kv_head": self.n_head, "head_size": self.n_embd / self.n_head, "n_inner": self._inner_by_itself()}
        for name, usual in own.items():
            if getattr(self, name) == usual:
                setattr(self, name, 0)  # one shape, one way of saying it
        if self.architecture == "gpt2":
            for name in own:
                if getattr(self, name):
                    raise ValueError(f"{name} {getattr(self, name)} is for model.architecture=qwen3: leave it at 0")
            if self.rope_base != 1e4:
                raise ValueError("rope_base is for model.architecture=qwen3: leave it out")
        else:
            self.qkv_bias = True  # as it is by itself: it says nothing here
            if self.dropout:
                raise ValueError("dropout is for model.architecture=gpt2: leave it at 0, or take preset nano")
            if self.n_head % self.kv_heads:
                raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
            if self.head_size % 2:
                raise ValueError(f"head_size {self.head_size} is odd: positions turn pairs of features")
        if not self.head_size and self.n_embd % self.n_head:
            fitting = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            near = ", ".join(map(str, sorted(sorted(fitting, key=lambda n: abs(n - self.n_head))[:6])))
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}: choose n_head from {near}"
            )
        if self.architecture == "qwen3" and self.head_width % 2:
            raise ValueError(f"heads of n_embd / n_head = {self.head_width} features: positions turn pairs of them")
        return self

    def computation(self) -> dict[str, Any]:
        """What decides, beside the weights, what a model computes; of a GPT-2 without what only Qwen3 has."""
        others = {"architecture", "n_kv_head", "head_size", "n_inner", "rope_base"}  # ids are made of it: let it stay
        return self.model_dump(
            mode="json", exclude={"dropout", "init"} | (others if self.architecture == "gpt2" else set())
        )

    @property
    def family(self) -> str:
        """What people call the architecture."""
        return {"gpt2": "GPT-2", "qwen3": "Qwen3"}[self.architecture]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        """Features of a head."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def qkv_width(self) -> int:
        """Features of a token's queries, keys and values together."""
        return (self.n_head + 2 * self.kv_heads) * self.head_width

    @property
    def inner(self) -> int:
        """Features inside the MLP, after its activation."""
        return self.n_inner or self._inner_by_itself()

    def _inner_by_itself(self) -> int:
        return 4 * self.n_embd if self.architecture == "gpt2" else -(-8 * self.n_embd // (3 * 64)) * 64
