"""What a training step will hold in memory, part by part, before it is run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.loss import chunk_rows


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes on one rank. Weights, gradients and moments are float32."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of the blocks, kept for the backward pass
    output_layer: int  # a chunk of logits, and the gradient of the matrix

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.output_layer

    @classmethod
    def of(cls, model: ModelConfig, train: TrainConfig, micro_batch: int, precision: str, device: str) -> MemoryBudget:
        """The budget of a step that takes `micro_batch` windows at once.

        A block keeps for a token, in multiples of its width: its input, two layer norms, q, k, v, what attention
        gives, that again for its projection, the sum, and the two sides of GELU. Counted from the code.
        """
        c, layers = model.n_embd, model.n_layer
        block = 12 * c * c + 13 * c
        table = model.vocab_size * c
        parameters = layers * block + table * (1 if model.tie_weights else 2) + model.context_length * c + 2 * c
        half = precision == "bfloat16"
        small = 2 if half else 4
        tokens = micro_batch * model.context_length
        # input, sum and both norms in float32 (in bfloat16 their copies for the products too), the rest as computed
        kept = c * (16 + (4 if half else 0) + small * (3 + 1 + 1 + 4 + 4))
        if model.dropout:
            kept += c * (small * 2 + 2)
        activations = tokens * (kept if not train.activation_checkpointing else 4 * c) * layers
        if train.activation_checkpointing:
            activations += tokens * kept
        activations += tokens * c * 4 * 3
        weights = 4 * parameters
        if half:
            weights += 2 * layers * 12 * c * c
        moments = 8 * parameters
        if train.optimizer == "muon":
            moments -= 4 * layers * 12 * c * c
        rows = min(chunk_rows(device, torch.bfloat16 if half else torch.float32), tokens)
        # logits (beside a GPU's float32 of them), the padded matrix, its gradient, and that of an embedding of its own
        output = rows * model.vocab_size * (small if device == "cpu" else small + 4)
        output += table * (small + (4 if model.tie_weights else 8))
        return cls(weights, 4 * parameters, moments, activations, output)

    def describe(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations", "output_layer")
        said = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / 1e9:.2f}" for name in parts)
        return f"{self.total / 1e9:.2f} GB predicted ({said})"
