"""The logits after each row's last token, with what was computed before kept: one decoder for CPUs, one for the rest.

On a CPU a step is bound by reading the matrices, and torch's plain product reads them at half the speed that oneDNN
does once it has laid them out for itself, at a third for several rows; so they are laid out once. Rows are not padded:
they go through the layers as one matrix, and each attends to its own tokens. What a row comes to depends on that row
alone, to the last bit: a product's row does not depend on the others from two rows on, and attention is computed over a
row's own length, rounded up to whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.model import GPT, Block, KVCache

_BLOCK = 16  # columns of attention are computed in whole blocks, so that rows of like lengths go together


@dataclass(frozen=True)
class Row:
    """A row that is continued: its number, which of its tokens is read first, and all of them."""

    number: int
    start: int
    tokens: list[int]


class Decoder(Protocol):
    def logits(self, rows: Sequence[Row]) -> Tensor:
        """After the last token of each row, (len(rows), V), float32 on the CPU.

        A row that is not among them has ended. One that begins where it did the last time is gone on with.
        """
        ...

    def forget(self) -> None:
        """Drop all rows: others with their numbers follow."""
        ...


def decoder_of(model: GPT, new_tokens: int, *, consume: bool = False) -> Decoder:
    """The decoder for where the model is.

    Args:
        new_tokens: that a row is continued with at most.
        consume: whether the model's matrices may be dropped once they are laid out anew: they are not held twice.
    """
    if next(model.parameters()).device.type == "cpu" and _has_onednn():
        return PackedDecoder(model, new_tokens, consume=consume)
    return BatchDecoder(model, new_tokens)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class BatchDecoder:
    """Rows padded on the left to one length, through the model itself; all are read anew when one of them is."""

    def __init__(self, model: GPT, new_tokens: int) -> None:
        self._model, self._new = model, new_tokens
        self._cache: KVCache | None = None
        self._starts: dict[int, int] = {}  # of the rows that the cache holds

    def forget(self) -> None:
        self._cache, self._starts = None, {}

    def logits(self, rows: Sequence[Row]) -> Tensor:
        model, cache = self._model, self._cache
        device = next(model.parameters()).device
        if cache is not None and cache.length < cache.capacity and all(self._starts[r.number] == r.start for r in rows):
            last = {row.number: row.tokens[-1] for row in rows}
            step = torch.tensor([[last.get(number, 0)] for number in self._starts], device=device)
            order = list(self._starts)
            places = torch.tensor([order.index(row.number) for row in rows], device=device)
            stepped: Tensor = model(step, cache=cache)[places, -1]
            return stepped.float().cpu()
        self._starts = {row.number: row.start for row in rows}
        read = [row.tokens[row.start :] for row in rows]
        longest, context = max(len(ids) for ids in read), model.config.context_length
        cache = KVCache(capacity=min(context, longest + self._new) if longest < context else longest)
        self._cache = cache if longest < context else None
        padding = [longest - len(ids) for ids in read]
        tokens = torch.tensor([[0] * pad + ids for pad, ids in zip(padding, read, strict=True)], device=device)
        cache.padding = torch.tensor(padding, device=device) if any(padding) else None
        logits: Tensor = model.lm_head(model.hidden(tokens, cache)[:, -1])
        return logits.float().cpu()


_product = torch.ops.mkldnn._linear_pointwise.default
_product_and_sum = torch.ops.mkldnn._linear_pointwise.binary


class _Linear:
    """A linear layer in oneDNN's own layout."""

    def __init__(self, layer: nn.Linear, consume: bool) -> None:
        weight = layer.weight.detach()
        self._dtype = weight.dtype
        self._bias = None if layer.bias is None else layer.bias.detach().to(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        if consume:
            layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(N, in) → (N, out), N at least 2, in the type of the weight."""
        attribute, form = ("gelu", "tanh") if gelu else ("none", "")
        out: Tensor = _product(x.to(self._dtype), self._weight, self._bias, attribute, [], form)
        return out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """The same on top of `to`, (N, out), float32."""
        if self._dtype != torch.float32:
            return to + self(x).float()
        out: Tensor = _product_and_sum(x, to, self._weight, self._bias, "add")
        return out


_Norm = tuple[list[int], Tensor, Tensor, float]


@dataclass(frozen=True)
class _PackedBlock:
    ln_1: _Norm
    c_attn: _Linear
    c_proj: _Linear
    ln_2: _Norm
    c_fc: _Linear
    c_out: _Linear


class PackedDecoder:
    """Rows of any lengths on a CPU."""

    def __init__(self, model: GPT, new_tokens: int, *, consume: bool) -> None:
        self._model, self._new = model, new_tokens
        self._heads = model.config.n_head
        self._size = model.config.n_embd // model.config.n_head
        # a tied matrix is the embedding's too, and stays
        self._head = _Linear(model.lm_head, consume and not model.config.tie_weights)
        self._blocks = [
            _PackedBlock(
                _norm(block.ln_1),
                _Linear(block.attn.c_attn, consume),
                _Linear(block.attn.c_proj, consume),
                _norm(block.ln_2),
                _Linear(block.mlp.c_fc, consume),
                _Linear(block.mlp.c_proj, consume),
            )
            for block in cast(list[Block], model.h)
        ]
        self._slots: list[int] = []  # the number of the row that each slot of the cache holds
        self._starts: dict[int, int] = {}
        self._lengths: dict[int, int] = {}  # tokens of a row that the cache holds
        columns = model.config.context_length + _BLOCK
        self._ramp = torch.cat([torch.zeros(columns), torch.full((columns,), -torch.inf)])  # masks are pieces of it
        self._known_views: dict[tuple[int, int, int], list[tuple[Tensor, Tensor]]] = {}
        self._keys = self._values = torch.empty(0)  # (layers, slots, H, capacity, D)

    def forget(self) -> None:
        self._slots, self._starts, self._lengths = [], {}, {}

    def logits(self, rows: Sequence[Row]) -> Tensor:
        known = [row for row in rows if self._goes_on(row)]
        self._keep([row.number for row in known])
        hidden: dict[int, Tensor] = {}
        if known:
            known.sort(key=lambda row: self._slots.index(row.number))
            hidden = dict(zip([row.number for row in known], self._step(known), strict=True))
        for row in rows:
            if row.number not in hidden:
                hidden[row.number] = self._read(row, len(rows))
        stacked = torch.stack([hidden[row.number] for row in rows])
        found = self._head(_two(torch.layer_norm(stacked, *_norm(self._model.ln_f))))
        return found[: len(rows)].float()

    def _goes_on(self, row: Row) -> bool:
        have = self._lengths.get(row.number, 0)
        same = self._starts.get(row.number) == row.start and have == len(row.tokens) - row.start - 1
        return same and have < self._keys.shape[3]

    def _keep(self, numbers: list[int]) -> None:
        """Only these rows; the last slots move to where others were."""
        while gone := [slot for slot, number in enumerate(self._slots) if number not in numbers]:
            last = len(self._slots) - 1
            if gone[0] != last:
                self._keys[:, gone[0]] = self._keys[:, last]
                self._values[:, gone[0]] = self._values[:, last]
            self._slots[gone[0]] = self._slots[last]
            self._slots.pop()

    def _embedded(self, tokens: list[int], positions: list[int]) -> Tensor:
        model = self._model
        return model.wte.weight[torch.tensor(tokens)].float() + model.wpe.weight[torch.tensor(positions)].float()

    def _layers(self, x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Through all blocks; x (N, C), float32, N at least 2.

        Args:
            attend: from a block's number and its queries, keys and values (N, 3, H, D) to what was attended to, (N, C).
        """
        for number, block in enumerate(self._blocks):
            qkv = block.c_attn(torch.layer_norm(x, *block.ln_1)).view(len(x), 3, self._heads, self._size)
            x = block.c_proj.added(attend(number, qkv), to=x)
            x = block.c_out.added(block.c_fc(torch.layer_norm(x, *block.ln_2), gelu=True), to=x)
        return x

    def _read(self, row: Row, rows: int) -> Tensor:
        """A row from its beginning: what the output layer's norm sees of its last token, (C,)."""
        tokens = row.tokens[row.start :]
        count, slot = len(tokens), len(self._slots)
        self._make_room(slot + 1, rows, count)

        def attend(number: int, qkv: Tensor) -> Tensor:
            query, key, value = qkv[:count].permute(1, 2, 0, 3)  # each (H, T, D)
            self._keys[number, slot, :, :count] = key
            self._values[number, slot, :, :count] = value
            out = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True)
            return _two(out[0].transpose(0, 1).reshape(count, -1))

        x = self._layers(_two(self._embedded(tokens, list(range(count)))), attend)
        self._slots.append(row.number)
        self._starts[row.number], self._lengths[row.number] = row.start, count
        return x[count - 1]

    def _make_room(self, slots: int, rows: int, tokens: int) -> None:
        context = self._model.config.context_length
        wanted = -(-min(context, tokens + self._new) // _BLOCK) * _BLOCK
        have = self._keys.shape[1:4:2] if self._keys.ndim > 1 else (0, 0)
        if have[0] >= slots and have[1] >= wanted:
            return
        shape = (len(self._blocks), max(rows, have[0]), self._heads, max(wanted, have[1]), self._size)
        used = len(self._slots)
        for name in ("_keys", "_values"):
            larger = torch.zeros(
                shape, dtype=self._model.lm_head.weight.dtype
            )  # what is not written yet is multiplied by zero, and must be a number
            if used:
                larger[:, :used, :, : have[1]] = getattr(self, name)[:, :used]
            setattr(self, name, larger)
        self._known_views = {}

    def _step(self, rows: list[Row]) -> Tensor:
        """One token each of the rows in the cache's slots, in their order; (len(rows), C)."""
        count = len(rows)
        positions = [self._lengths[row.number] for row in rows]
        runs = _runs([position // _BLOCK + 1 for position in positions])
        masks = [self._mask(positions[run], blocks * _BLOCK) for run, blocks in runs]
        views = [self._views(run, blocks * _BLOCK) for run, blocks in runs]
        new_keys, new_values = self._next(positions)
        scale, heads, size = self._size**-0.5, self._heads, self._size
        half = self._keys.dtype != torch.float32
        out = torch.zeros(max(2, count), heads * size, dtype=self._keys.dtype)
        outs = [out[run].view(-1, 1, size) for run, _ in runs]

        def attend(number: int, qkv: Tensor) -> Tensor:
            query, key, value = qkv[:count].unbind(1)  # each (N, H, D)
            new_keys(number, key)
            new_values(number, value)
            for (run, _), mask, layers, into in zip(runs, masks, views, outs, strict=True):
                keys, values = layers[number]  # each (n · H, columns, D)
                if half:  # as many short products the other way round: half the time here, in float32 twice
                    scores = torch.bmm(keys, query[run].reshape(-1, size, 1)).float().view(len(keys), 1, -1)
                    scores = scores.mul_(scale).add_(mask)
                else:
                    scores = torch.baddbmm(mask, query[run].reshape(-1, 1, size), keys.transpose(1, 2), alpha=scale)
                torch.bmm(torch.softmax(scores, -1).to(keys.dtype), values, out=into)
            return out

        x = self._layers(_two(self._embedded([row.tokens[-1] for row in rows], positions)), attend)
        for row in rows:
            self._lengths[row.number] += 1
        return x[:count]

    def _next(self, positions: list[int]) -> list[Callable[[int, Tensor], None]]:
        """What writes a layer's new keys, and its new values, (rows, H, D), where each row goes on."""
        count = len(positions)
        if len(set(positions)) == 1:  # a slice is written quicker than what is indexed
            slices = [held[:, :count, :, positions[0]].unbind(0) for held in (self._keys, self._values)]
            return [partial(_write_slice, each) for each in slices]
        places = (torch.arange(count), slice(None), torch.tensor(positions))
        return [partial(_write_places, held.unbind(0), places) for held in (self._keys, self._values)]

    def _views(self, run: slice, width: int) -> list[tuple[Tensor, Tensor]]:
        """The first columns of some slots as products want them, of each layer; kept, since making them takes time."""
        key = (run.start, run.stop, width)
        if key not in self._known_views:
            shape = (len(self._blocks), (run.stop - run.start) * self._heads, -1, self._size)
            keys, values = (held[:, run].view(shape)[:, :, :width] for held in (self._keys, self._values))
            self._known_views[key] = list(zip(keys.unbind(0), values.unbind(0), strict=True))
        return self._known_views[key]

    def _mask(self, positions: list[int], width: int) -> Tensor:
        """Minus infinity after each row's columns, (rows · H, 1, width), or (1, 1, width) for rows of one length."""
        edge = len(self._ramp) // 2 - 1  # the last zero
        if len(set(positions)) == 1:
            return self._ramp[edge - positions[0] :][:width].view(1, 1, width)
        lines = torch.stack([self._ramp[edge - position :][:width] for position in positions])
        return lines.repeat_interleave(self._heads, 0)[:, None]


def _write_slice(layers: Sequence[Tensor], number: int, new: Tensor) -> None:
    layers[number].copy_(new)


def _write_places(layers: Sequence[Tensor], places: Any, number: int, new: Tensor) -> None:
    layers[number][places] = new


def _two(x: Tensor) -> Tensor:
    """At least two rows: a product with one takes another way, and comes to other last bits."""
    return torch.cat([x, x]) if len(x) == 1 else x


def _norm(norm: nn.LayerNorm) -> _Norm:
    return list(norm.normalized_shape), norm.weight, norm.bias, norm.eps


def _runs(values: list[int]) -> list[tuple[slice, int]]:
    """Where equal values stand side by side, and which."""
    found, start = [], 0
    for value, group in groupby(values):
        size = len(list(group))
        found.append((slice(start, start + size), value))
        start += size
    return found
