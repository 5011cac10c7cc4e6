"""The next tokens of rows, with keys and values kept, so that a step computes one token per row.

Rows are not padded: each has a slot of the cache, is read into it on its own, and attends to its own tokens. How a step
is computed is for the device: `cpu.py` on CPUs, `gpu.py` on others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.config import SampleConfig
from gptpipe.model.gpt import GPT, Block
from gptpipe.model.layers import RMSNorm, rms_norm
from gptpipe.model.lean import activated
from gptpipe.model.qwen3 import Attention, Rotation, rotation


@dataclass(frozen=True)
class Row:
    """A row that is continued: its number, which of its tokens is read first, and all of them."""

    number: int
    start: int
    tokens: list[int]


@dataclass(frozen=True)
class Continuation:
    """The next tokens, each a list with one number per row; of at least one turn.

    Attributes:
        logprobs: natural logarithms of the probabilities that the model itself gave to them; empty where not asked for.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]


class Linear(Protocol):
    """A linear layer as a decoder has it."""

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(N, in) → (N, out), in the type of its matrix."""
        ...

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """`to` plus what the layer makes of x, (N, in): (N, out), float32."""
        ...


Norm = tuple[list[int], Tensor, Tensor | None, float]
"""The shape, scale, shift and epsilon of a layer norm; of an RMS norm, which has no shift."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From a block's number and its queries (N, H, D), keys and values (N, K, D) to what was attended to, (N, H D)."""


@dataclass(frozen=True)
class _Block:
    ln_1: Norm
    c_attn: Linear
    c_proj: Linear
    ln_2: Norm
    c_fc: Linear
    c_out: Linear


class Decoder(ABC):
    """Rows of any lengths and their cache.

    Args:
        model: whose matrices are read; its type is that of the cache.
        new_tokens: that a row is continued with at most.
        linear: makes its layers; the second argument says whether the model's own matrix is needed no more.
        consume: whether the model's matrices may go.
    """

    columns: int  # the cache is as long as a multiple of this
    least: int  # rows that go through the layers at least
    ahead = 1  # tokens of a row that are made at most before they are asked for
    exact = False  # whether the cache is to be as long as its longest row, rounded up, at every step

    def __init__(
        self, model: GPT, new_tokens: int, linear: Callable[[nn.Linear, bool], Linear], *, consume: bool
    ) -> None:
        config = model.config
        self._model, self._new = model, new_tokens
        self._device = model.wte.weight.device
        self._heads, self._kv_heads, self._size = config.n_head, config.kv_heads, config.head_width
        # a tied matrix is the embedding's too, and stays
        self._head = linear(model.lm_head, consume and not config.tie_weights)
        self._blocks = [
            _Block(
                norm_of(block.ln_1),
                linear(block.attn.c_attn, consume),
                linear(block.attn.c_proj, consume),
                norm_of(block.ln_2),
                linear(block.mlp.c_fc, consume),
                linear(block.mlp.c_proj, consume),
            )
            for block in cast(list[Block], model.h)
        ]
        self._slot_count = self._capacity = 0
        nothing = [torch.empty(0, dtype=model.lm_head.weight.dtype, device=self._device)] * len(self._blocks)
        self._keys, self._values = list(nothing), list(nothing)  # of each layer, (slots, K, capacity, D)
        self._key_memory, self._value_memory = list(nothing), list(nothing)  # in which these lie, with room to grow
        self.forget()

    def forget(self) -> None:
        """Drop all rows: others with their numbers follow."""
        self._slots: list[int] = []  # the number of the row that each slot of the cache holds
        self._starts: dict[int, int] = {}
        self._lengths: dict[int, int] = {}  # tokens of a row that the cache holds

    @abstractmethod
    def continued(self, rows: Sequence[Row], config: SampleConfig, count: int, *, logprobs: bool) -> Continuation:
        """The next tokens of each row.

        A row that is not among them has ended. One that begins where it did the last time is gone on with.

        Args:
            config: how a token is drawn.
            count: tokens of each row, at most `ahead`; a decoder may come back with fewer.
            logprobs: whether their log-probabilities are needed.
        """

    def _moved(self) -> None:  # noqa: B027, for those that keep views of the cache
        """The cache lies elsewhere now."""

    def _enough(self, x: Tensor) -> Tensor:
        """At least as many rows as go through the layers."""
        return torch.cat([x] * self.least) if len(x) < self.least else x

    def _goes_on(self, row: Row) -> bool:
        have = self._lengths.get(row.number, 0)
        return self._starts.get(row.number) == row.start and have == len(row.tokens) - row.start - 1

    def _keep(self, numbers: list[int]) -> None:
        """Only these rows; the last slots move to where others were."""
        while gone := [slot for slot, number in enumerate(self._slots) if number not in numbers]:
            last = len(self._slots) - 1
            if gone[0] != last:
                for held in (*self._keys, *self._values):
                    held[gone[0]] = held[last]
            self._slots[gone[0]] = self._slots[last]
            self._slots.pop()

    def _layers(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Through all blocks, as many rows as go through them at least; (N, C), float32.

        Args:
            tokens: (N,), int64.
            positions: theirs in their rows, (N,), int64.
        """
        model, turn = self._model, None
        x = model.wte.weight[tokens].float()
        if model.config.architecture == "gpt2":
            x = x + model.wpe.weight[positions].float()
        else:
            turn = rotation(model.config, positions if len(tokens) >= self.least else positions.repeat(self.least))
        x = self._enough(x)
        for number, block in enumerate(self._blocks):
            qkv = block.c_attn(normalized(x, block.ln_1)).view(len(x), -1, self._size)
            x = block.c_proj.added(attend(number, *self._split(number, qkv, turn)), to=x)
            if turn is None:
                wide = block.c_fc(normalized(x, block.ln_2), gelu=True)
            else:
                wide = activated(block.c_fc(normalized(x, block.ln_2)), "gated")
            x = block.c_out.added(wide, to=x)
        return x

    def _split(self, number: int, qkv: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        if turn is not None:
            return cast(Attention, self._model.h[number].attn).split(qkv, turn)
        query, key, value = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        return query, key, value

    def read(self, row: Row) -> Tensor:
        """A row from its beginning: what the output layer's norm sees of its last token, (C,)."""
        tokens = row.tokens[row.start :]
        count, slot = len(tokens), len(self._slots)

        def attend(number: int, *qkv: Tensor) -> Tensor:
            query, key, value = (each[:count].transpose(0, 1) for each in qkv)  # each (heads, T, D)
            self._keys[number][slot, :, :count] = key
            self._values[number][slot, :, :count] = value
            if self._kv_heads < self._heads:
                key, value = (each.repeat_interleave(self._heads // self._kv_heads, 0) for each in (key, value))
            out = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True)
            return self._enough(out[0].transpose(0, 1).reshape(count, -1))

        given = torch.tensor([tokens, list(range(count))], device=self._device)
        x = self._layers(given[0], given[1], attend)
        self._slots.append(row.number)
        self._starts[row.number], self._lengths[row.number] = row.start, count
        return x[count - 1]

    def _make_room(self, rows: int, tokens: int, later: int) -> None:
        """Make the caches large enough for `rows` rows of at most `tokens` tokens now, and of `later` in the end."""
        most = max(self._rounded(max(tokens, later)), self._capacity)
        capacity = self._rounded(tokens) if self.exact else most
        if rows <= self._slot_count and capacity == self._capacity:
            return
        slots = max(rows, self._slot_count)
        used, kept = len(self._slots), min(capacity, self._capacity)
        for held, memory in ((self._keys, self._key_memory), (self._values, self._value_memory)):
            for layer, before in enumerate(held):
                written = before[:used, :, :kept].clone() if used else None
                size = self._kv_heads * self._size * slots
                if len(memory[layer]) < size * capacity:
                    memory[layer] = memory[layer].new_empty(size * most)
                now = memory[layer][: size * capacity].view(slots, self._kv_heads, capacity, self._size)
                now.zero_()  # what is not written yet is multiplied by zero, and must be a number
                if written is not None:
                    now[:used, :, :kept] = written
                held[layer] = now
        self._slot_count, self._capacity = slots, capacity
        self._moved()

    def _rounded(self, tokens: int) -> int:
        return -(-min(self._model.config.context_length, tokens) // self.columns) * self.columns


def norm_of(norm: nn.LayerNorm | RMSNorm) -> Norm:
    """What `normalized` takes beside its input."""
    shift = None if isinstance(norm, RMSNorm) else norm.bias
    return list(norm.weight.shape), norm.weight, shift, norm.eps


def normalized(x: Tensor, norm: Norm) -> Tensor:
    """The norm of x, (N, C), float32."""
    shape, scale, shift, epsilon = norm
    return rms_norm(x, scale, epsilon)[0] if shift is None else torch.layer_norm(x, shape, scale, shift, epsilon)
