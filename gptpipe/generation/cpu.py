"""Decoding on a CPU, where a step is bound by reading the matrices.

torch's plain product reads them at half the speed that oneDNN does once it has laid them out for itself, at a third for
several rows; so they are laid out once. What a row comes to depends on that row alone, in float32 to the last bit: a
product's row does not depend on the others from two rows on, and attention is computed over a row's own length, rounded
up to whole blocks. In bfloat16 oneDNN's batched products may round differently for another number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.config import SampleConfig
from gptpipe.generation.decoder import Continuation, Decoder, Row, norm_of, normalized
from gptpipe.generation.sampling import choose
from gptpipe.model.gpt import GPT
from gptpipe.model.memory import keep_freed_memory

_product = torch.ops.mkldnn._linear_pointwise.default
_product_and_sum = torch.ops.mkldnn._linear_pointwise.binary


class _Linear:
    """A linear layer in oneDNN's own layout, for two rows and more."""

    def __init__(self, layer: nn.Linear, consume: bool) -> None:
        weight = layer.weight.detach()
        self._dtype = weight.dtype
        self._bias = None if layer.bias is None else layer.bias.detach().to(weight.dtype)
        # a CPU without instructions for bfloat16 takes torch's own products, which are slow there
        self._is_packed = weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._is_packed else weight
        if consume:
            layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        out: Tensor
        if not self._is_packed:
            out = F.linear(x.to(self._dtype), self._weight, self._bias)
            return F.gelu(out, approximate="tanh") if gelu else out
        attribute, form = ("gelu", "tanh") if gelu else ("none", "")
        out = _product(x.to(self._dtype), self._weight, self._bias, attribute, [], form)
        return out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        if self._dtype != torch.float32:
            return to + self(x).float()
        out: Tensor = _product_and_sum(x, to, self._weight, self._bias, "add")
        return out


class PackedDecoder(Decoder):
    """Rows on a CPU."""

    columns = 16  # so that rows of like lengths go through attention together
    least = 2  # a product with one takes another way, and comes to other last bits

    def __init__(self, model: GPT, new_tokens: int, *, consume: bool) -> None:
        keep_freed_memory()
        # in half precision the products copy what does not lie in one piece, at every step
        self.exact = model.lm_head.weight.dtype != torch.float32
        super().__init__(model, new_tokens, _Linear, consume=consume)
        most = model.config.context_length + self.columns
        self._ramp = torch.cat([torch.zeros(most), torch.full((most,), -torch.inf)])  # masks are pieces of it
        self._known_views: dict[tuple[int, int, int], list[tuple[Tensor, Tensor]]] = {}

    def _moved(self) -> None:
        self._known_views = {}

    def continued(self, rows: Sequence[Row], config: SampleConfig, count: int, *, logprobs: bool) -> Continuation:
        logits = self.logits(rows)
        chosen = choose(
            logits,
            config,
            rows=[row.number for row in rows],
            positions=[len(row.tokens) for row in rows],
            seen=[row.tokens for row in rows],
        )
        if not logprobs:
            return Continuation([chosen], [])
        scores = torch.log_softmax(logits.double(), dim=-1)
        return Continuation([chosen], [[float(line[token]) for line, token in zip(scores, chosen, strict=True)]])

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """After the last token of each row, (len(rows), V), float32.

        A row that is not among them has ended. One that begins where it did the last time is gone on with.
        """
        known = [row for row in rows if self._goes_on(row)]
        self._keep([row.number for row in known])
        lengths = {row.number: len(row.tokens) - row.start for row in rows}
        fresh = [length + self._new for number, length in lengths.items() if number not in self._slots]
        self._make_room(len(rows), max(lengths.values()), max(fresh, default=0))
        hidden: dict[int, Tensor] = {}
        if known:
            known.sort(key=lambda row: self._slots.index(row.number))
            hidden = dict(zip([row.number for row in known], self._step(known), strict=True))
            for row in known:
                self._lengths[row.number] += 1
        for row in rows:
            if row.number not in hidden:
                hidden[row.number] = self.read(row)
        stacked = torch.stack([hidden[row.number] for row in rows])
        logits = self._head(self._enough(normalized(stacked, norm_of(self._model.ln_f))))
        return logits[: len(rows)].float()

    def _step(self, rows: list[Row]) -> Tensor:
        """One token each of the rows in the cache's slots, in their order; (len(rows), C)."""
        count = len(rows)
        positions = [self._lengths[row.number] for row in rows]
        runs = _runs([position // self.columns + 1 for position in positions])
        masks = [self._mask(positions[run], blocks * self.columns) for run, blocks in runs]
        views = [self._views(run, blocks * self.columns) for run, blocks in runs]
        new_keys, new_values = self._next(positions)
        scale, size, group = self._size**-0.5, self._size, self._heads // self._kv_heads
        half, kind = self.exact, self._keys[0].dtype
        out = torch.zeros(max(self.least, count), self._heads * size, dtype=kind)
        outs = [out[run].view(-1, group, size) for run, _ in runs]  # the heads of a key side by side

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            new_keys(number, key[:count])
            new_values(number, value[:count])
            for (run, _), mask, layers, into in zip(runs, masks, views, outs, strict=True):
                keys, values = layers[number]  # each (n · K, columns, D)
                queries = query[run].reshape(-1, group, size)
                if half:
                    keys, values = keys.contiguous(), values.contiguous()  # as they are but for the shorter rows
                    scores = torch.bmm(queries, keys.transpose(1, 2)).float().mul_(scale).add_(mask)
                else:
                    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale)
                torch.bmm(torch.softmax(scores, -1).to(kind), values, out=into)
            return out

        tokens = torch.tensor([row.tokens[-1] for row in rows])
        return self._layers(tokens, torch.tensor(positions), attend)[:count]

    def _next(self, positions: list[int]) -> list[Callable[[int, Tensor], None]]:
        """What writes a layer's new keys, and its new values, (rows, K, D), where each row goes on."""
        count = len(positions)
        if len(set(positions)) == 1:  # a slice is written quicker than what is indexed
            slices = [[each[:count, :, positions[0]] for each in held] for held in (self._keys, self._values)]
            return [partial(_write_slice, each) for each in slices]
        places = (torch.arange(count), slice(None), torch.tensor(positions))
        return [partial(_write_places, held, places) for held in (self._keys, self._values)]

    def _views(self, run: slice, width: int) -> list[tuple[Tensor, Tensor]]:
        """The first columns of some slots as products need them, of each layer; kept, since making them takes time."""
        key = (run.start, run.stop, width)
        if key not in self._known_views:
            shape = ((run.stop - run.start) * self._kv_heads, -1, self._size)
            pairs = zip(self._keys, self._values, strict=True)
            self._known_views[key] = [(k[run].view(shape)[:, :width], v[run].view(shape)[:, :width]) for k, v in pairs]
        return self._known_views[key]

    def _mask(self, positions: list[int], width: int) -> Tensor:
        """Minus infinity after each row's columns, (rows · K, 1, width), or (1, 1, width) for rows of one length."""
        edge = len(self._ramp) // 2 - 1  # the last zero
        if len(set(positions)) == 1:
            return self._ramp[edge - positions[0] :][:width].view(1, 1, width)
        lines = torch.stack([self._ramp[edge - position :][:width] for position in positions])
        return lines.repeat_interleave(self._kv_heads, 0)[:, None]


def _write_slice(layers: Sequence[Tensor], number: int, new: Tensor) -> None:
    layers[number].copy_(new)


def _write_places(layers: Sequence[Tensor], places: Any, number: int, new: Tensor) -> None:
    layers[number][places] = new


def _runs(values: list[int]) -> list[tuple[slice, int]]:
    """Where equal values stand side by side, and which."""
    parts, start = [], 0
    for value, group in groupby(values):
        size = len(list(group))
        parts.append((slice(start, start + size), value))
        start += size
    return parts
