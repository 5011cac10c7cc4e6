"""Decoding on devices other than a CPU, where a step is bound by how fast its kernels are started.

All shapes of a step are fixed: rows are rounded up to a power of two, and so is the width over which they attend, each
masked at its own length. On CUDA a step of such a shape is captured as a graph the first time, and replayed with one
call from then on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.generation.decoder import Decoder, Row
from gptpipe.model.gpt import GPT

_WARM_UP = 2  # steps before a capture, in which libraries set themselves up


class _Linear:
    """A linear layer as it is."""

    def __init__(self, layer: nn.Linear, _consume: bool) -> None:
        self._weight = layer.weight
        self._bias = None if layer.bias is None else layer.bias.to(layer.weight.dtype)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        out = F.linear(x.to(self._weight.dtype), self._weight, self._bias)
        return F.gelu(out, approximate="tanh") if gelu else out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        return to + self(x)


class GraphedDecoder(Decoder):
    """Rows on a GPU, or on whatever else the model is."""

    columns = 64
    least = 1

    def __init__(self, model: GPT, new_tokens: int) -> None:
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        super().__init__(model, new_tokens, _Linear, consume=False)
        self._given = self._places = torch.empty(0)

    def _moved(self) -> None:
        slots = self._slot_count
        self._graphs = {}
        self._given = torch.zeros(2, slots, dtype=torch.int64, device=self._device)  # tokens and positions of a step
        self._places = torch.arange(max(slots, self._capacity), device=self._device)

    def _step(self, rows: list[Row]) -> Tensor:
        positions = [self._lengths[row.number] for row in rows]
        count = min(self._slot_count, _power_of_two(len(rows)))
        width = min(self._capacity, max(self.columns, _power_of_two(max(positions) + 1)))
        # a slot without a row gets token 0 at position 0, where the row that is read into it will write
        rest = [0] * (count - len(rows))
        given = torch.tensor([[row.tokens[-1] for row in rows] + rest, positions + rest])
        self._given[:, :count].copy_(given)
        return self._replayed(count, width)[: len(rows)]

    def _fixed(self, count: int, width: int) -> Tensor:
        """A step of the tokens that were given, of the first slots; (count, C)."""
        tokens, positions = self._given[0, :count], self._given[1, :count]
        slots = self._places[:count]
        mask = (self._places[:width] <= positions[:, None])[:, None, None]  # (count, 1, 1, width)

        def attend(number: int, qkv: Tensor) -> Tensor:
            query, key, value = qkv.unbind(1)  # each (count, H, D)
            keys, values = self._keys[number], self._values[number]
            keys[slots, :, positions] = key
            values[slots, :, positions] = value
            out = F.scaled_dot_product_attention(
                query[:, :, None], keys[:count, :, :width], values[:count, :, :width], attn_mask=mask
            )
            return out.reshape(count, -1)

        return self._layers(self._embedded(tokens, positions), attend)

    def _replayed(self, count: int, width: int) -> Tensor:
        """The logits of a step of fixed shape; on CUDA out of its graph, whose result the next replay writes over."""
        if self._device.type != "cuda":
            return self._fixed(count, width)
        if (count, width) not in self._graphs:
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):  # it may be done again: it writes the same to the same places
                    self._fixed(count, width)
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made = self._fixed(count, width)
            self._graphs[count, width] = graph, made
        graph, made = self._graphs[count, width]
        graph.replay()
        return made


def _power_of_two(number: int) -> int:
    """The smallest that is not below it."""
    return 1 << (number - 1).bit_length()
