"""What a training step will hold in memory, part by part, before it is run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.model.loss import chunk_rows


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes on one rank. Weights, gradients and moments are float32."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept for the backward pass
    output_layer: int  # a chunk of logits, the copy of the matrix for the product, its gradient
    copies: int  # of weights and moments, on their way to a checkpoint: in the first rank's memory
    accumulates: bool  # whether gradients are there before the backward pass begins

    @property
    def total(self) -> int:
        """At most at once: when the output layer has been gone through, or when all gradients are there.

        From the first checkpoint on the copies for it are kept: the next one's are made where they are.
        """
        forward = self.activations + self.output_layer + (self.gradients if self.accumulates else 0)
        return self.weights + self.optimizer + max(forward, self.gradients) + self.copies

    @classmethod
    def of(
        cls, model: ModelConfig, train: TrainConfig, micro_batch: int, precision: str, device: str, world_size: int
    ) -> MemoryBudget:
        """The budget of a step that takes `micro_batch` windows at once, counted from the code of `gptpipe.model`."""
        c, layers = model.n_embd, model.n_layer
        table = model.vocab_size * c
        heads = model.n_head * model.head_width
        matrices = c * (model.qkv_width + heads + 2 * model.inner)
        if model.architecture == "gpt2":
            parameters = layers * (matrices + 13 * c) + model.context_length * c + 2 * c
        else:
            matrices += c * model.inner
            parameters = layers * (matrices + 2 * c + 2 * model.head_width) + c
        parameters += table * (1 if model.tie_weights else 2)
        small = 2 if precision == "bfloat16" else 4
        tokens = micro_batch * model.context_length
        kept = cls.of_block(model, small, device)
        activations = tokens * kept * layers
        if train.activation_checkpointing:
            activations = tokens * (4 * c * layers + kept)
        activations += tokens * c * 4 * (2 + bool(model.dropout))  # embeddings, last norm
        moments = 8 * parameters
        if train.optimizer == "muon":
            moments -= 4 * layers * matrices
        rows = min(chunk_rows(device, torch.bfloat16 if small == 2 else torch.float32), tokens)
        output = rows * model.vocab_size * small
        output += table * (4 + (small if small == 2 else 0))
        copies = 4 * parameters + moments if device == "cpu" else 0  # a GPU's are in the host's memory
        # DDP's buckets stay from step to step
        accumulates = world_size > 1 or micro_batch < math.ceil(train.batch_size / world_size)
        return cls(4 * parameters, 4 * parameters, moments, activations, output, copies, accumulates)

    @staticmethod
    def of_block(model: ModelConfig, small: int, device: str) -> int:
        """Bytes that a block keeps for a token, `small` being those of a number in the type of the products.

        Its input and the sum after the attention in float32; query, key, value, what attention gives, and what stands
        before GELU. With dropout also its masks, and on a CPU the attention's probabilities: only GPUs have a kernel
        that makes them again.
        """
        c, small_c = model.n_embd, model.n_embd * small
        if model.architecture == "qwen3":
            heads, keys = model.n_head * model.head_width, model.kv_heads * model.head_width
            turned = heads + keys + (2 * heads if keys < heads else 0)  # keys and values are repeated for groups
            return 8 * c + small * (model.qkv_width + turned + heads + 2 * model.inner)
        if not model.dropout:
            return 8 * c + small_c * (3 + 1 + 4)
        if device != "cpu":
            return 8 * c + small_c * (3 + 1 + 4) + 2 * c
        return 8 * c + 3 * 4 * c + small_c * (1 + 2 + 4) + 12 * model.n_head * model.context_length

    def parts(self) -> dict[str, int]:
        """Bytes by part; those that are not there on this device left out."""
        names = ("weights", "gradients", "optimizer", "activations", "output_layer", "copies")
        return {name: size for name in names if (size := getattr(self, name))}

    def describe(self) -> str:
        said = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in self.parts().items())
        return f"{self.total / 1e9:.2f} GB at most at once predicted ({said})"
