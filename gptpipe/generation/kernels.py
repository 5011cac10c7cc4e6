"""Triton kernels of a decoding step: five a block, and what flows between blocks stays float32.

A step of a few rows is bound by reading the matrices once and by starting kernels. So a norm, a bias, GELU, the sum
with what flows past a layer, and the writing of keys and values each belong to the kernel beside them.

Imported only where they run, by `gptpipe.generation.gpu`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = tl.constexpr(16)  # that a program takes at once: what matrix units multiply at least
# Of a matrix, what a program reads at a time: for one row few rows of it whole, so that one wait for memory suffices;
# for several a tile that the matrix units multiply.
_OUT_ALONE, _DEPTH_ALONE = 8, 1024
_OUT, _OUT_MANY, _DEPTH = 16, 64, 128
_MANY = 8192  # outputs: this many keep all multiprocessors busy with wide tiles
_TOKENS = 64  # of the cache, the same


@triton.jit
def _embedded(tokens, positions, words, places, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of `out`: its token's embedding and its position's."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    token, position = tl.load(tokens + row), tl.load(positions + row)
    word = tl.load(words + token * width + columns, mask=inside, other=0.0).to(tl.float32)
    place = tl.load(places + position * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, word + place, mask=inside)


@triton.jit
def _linear(  # type: ignore[no-untyped-def]
    x,
    scale,
    shift,
    weight,
    bias,
    out,
    rows,
    inputs,
    outputs,
    epsilon,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    ALONE: tl.constexpr,
    OUT: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Some columns of `out` for one row (`ALONE`) or up to 16."""
    first = tl.program_id(1) * (1 if ALONE else _ROWS)
    columns = tl.program_id(0) * OUT + tl.arange(0, OUT)
    depth = tl.arange(0, DEPTH)
    numbers = first + tl.arange(0, 1 if ALONE else _ROWS)
    there = numbers < rows
    mean = tl.zeros([1 if ALONE else _ROWS], tl.float32)
    spread = tl.full([1 if ALONE else _ROWS], 1.0, tl.float32)
    if NORM:
        squares = tl.zeros([1 if ALONE else _ROWS], tl.float32)
        for start in range(0, inputs, DEPTH):
            mask = there[:, None] & (start + depth < inputs)[None, :]
            values = tl.load(x + numbers[:, None] * inputs + start + depth[None, :], mask=mask, other=0.0)
            mean += tl.sum(values.to(tl.float32), axis=1)
        mean = mean / inputs
        for start in range(0, inputs, DEPTH):
            mask = there[:, None] & (start + depth < inputs)[None, :]
            values = tl.load(x + numbers[:, None] * inputs + start + depth[None, :], mask=mask, other=0.0)
            away = tl.where(mask, values.to(tl.float32) - mean[:, None], 0.0)
            squares += tl.sum(away * away, axis=1)
        spread = tl.rsqrt(squares / inputs + epsilon)
    total = tl.zeros([1 if ALONE else _ROWS, OUT], tl.float32)
    for start in range(0, inputs, DEPTH):
        places = start + depth
        mask = there[:, None] & (places < inputs)[None, :]
        values = tl.load(x + numbers[:, None] * inputs + places[None, :], mask=mask, other=0.0)
        if NORM:
            slope = tl.load(scale + places, mask=places < inputs, other=0.0)
            offset = tl.load(shift + places, mask=places < inputs, other=0.0)
            values = (values.to(tl.float32) - mean[:, None]) * spread[:, None] * slope[None, :] + offset[None, :]
        values = values.to(weight.dtype.element_ty)
        inside = (columns < outputs)[:, None] & (places < inputs)[None, :]
        part = tl.load(weight + columns[:, None] * inputs + places[None, :], mask=inside, other=0.0)
        if ALONE:
            total += tl.sum(part.to(tl.float32) * values.to(tl.float32), axis=1)[None, :]
        else:
            total += tl.dot(values, tl.trans(part), input_precision="ieee")
    if BIAS:
        total += tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    if GELU:  # x / 2 · (1 + tanh u) = x · sigmoid(2 u)
        total = total * tl.sigmoid(1.5957691216057308 * (total + 0.044715 * total * total * total))
    mask = there[:, None] & (columns < outputs)[None, :]
    place = out + numbers[:, None] * outputs + columns[None, :]
    if ADD:
        total += tl.load(place, mask=mask, other=0.0)
    tl.store(place, total, mask=mask)


@triton.jit
def _attended(  # type: ignore[no-untyped-def]
    qkv,
    keys,
    values,
    positions,
    out,
    heads,
    size,
    capacity,
    share,
    SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One head of one row: its key and value go into the cache, and it attends to all that is there."""
    row, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + row)
    width = heads * size
    columns = tl.arange(0, SIZE)
    inside = columns < size
    own = qkv + row * 3 * width + head * size + columns
    query = tl.load(own, mask=inside, other=0.0).to(tl.float32) * share
    key, value = tl.load(own + width, mask=inside, other=0.0), tl.load(own + 2 * width, mask=inside, other=0.0)
    first = (row.to(tl.int64) * heads + head) * capacity * size
    tl.store(keys + first + position * size + columns, key, mask=inside)
    tl.store(values + first + position * size + columns, value, mask=inside)
    # itself is taken from registers: what was stored just now need not be there yet
    greatest = tl.sum(query * key.to(tl.float32), axis=0)
    total = tl.full((), 1.0, tl.float32)
    result = value.to(tl.float32)
    for start in range(0, position, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        mask = (tokens < position)[:, None] & inside[None, :]
        place = first + tokens[:, None] * size + columns[None, :]
        scores = tl.sum(tl.load(keys + place, mask=mask, other=0.0).to(tl.float32) * query[None, :], axis=1)
        scores = tl.where(tokens < position, scores, -3.0e38)
        now = tl.maximum(greatest, tl.max(scores, axis=0))
        weights = tl.exp(scores - now)
        before = tl.exp(greatest - now)
        part = tl.load(values + place, mask=mask, other=0.0).to(tl.float32)
        result = result * before + tl.sum(part * weights[:, None], axis=0)
        total = total * before + tl.sum(weights, axis=0)
        greatest = now
    tl.store(out + row * width + head * size + columns, result / total, mask=inside)


def embedded(tokens: Tensor, positions: Tensor, words: Tensor, places: Tensor) -> Tensor:
    """`words[tokens] + places[positions]`, float32.

    Args:
        tokens, positions: (N,), int64.
        words: (V, C). places: (context, C).
    """
    width = words.shape[1]
    out = torch.empty((len(tokens), width), dtype=torch.float32, device=words.device)
    _embedded[(len(tokens),)](tokens, positions, words, places, out, width, BLOCK=triton.next_power_of_2(width))
    return out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, Tensor, float] | None = None,
    gelu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A linear layer, behind a layer norm where one is given, its result through GELU (tanh) where that is asked for.

    Args:
        x: (N, in). weight: (out, in). bias: (out,).
        norm: scale and shift, (in,), float32, and epsilon.
        dtype: of the result; by default that of the matrix.

    Returns:
        (N, out).
    """
    out = torch.empty((len(x), len(weight)), dtype=dtype or weight.dtype, device=x.device)
    _launch_linear(x, weight, bias, norm, out, gelu=gelu, add=False)
    return out


def add_linear_(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add a linear layer's result to `total`, (N, out), float32, in place. The others are as in `linear`."""
    _launch_linear(x, weight, bias, None, total, gelu=False, add=True)


def attended(qkv: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Write each row's key and value to its position of the cache, and attend to all up to it.

    Args:
        qkv: (N, 3, H, D). positions: (N,), int64: tokens that the cache holds of each row.
        keys, values: (slots, H, capacity, D), of which the first N are the rows'.

    Returns:
        (N, H · D), in the type of the cache.
    """
    count, _, heads, size = qkv.shape
    out = torch.empty((count, heads * size), dtype=keys.dtype, device=qkv.device)
    _attended[(count, heads)](
        qkv,
        keys,
        values,
        positions,
        out,
        heads,
        size,
        keys.shape[2],
        size**-0.5,
        SIZE=max(16, triton.next_power_of_2(size)),
        TOKENS=_TOKENS,
    )
    return out


def _launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: tuple[Tensor, Tensor, float] | None,
    out: Tensor,
    *,
    gelu: bool,
    add: bool,
) -> None:
    rows, outputs, inputs = len(x), *weight.shape
    scale, shift, epsilon = norm or (weight, weight, 0.0)
    columns, depth = (_OUT if outputs <= _MANY else _OUT_MANY), _DEPTH
    if rows == 1:
        columns, depth = _OUT_ALONE, min(_DEPTH_ALONE, triton.next_power_of_2(inputs))
    _linear[(triton.cdiv(outputs, columns), 1 if rows == 1 else triton.cdiv(rows, _ROWS.value))](
        x,
        scale,
        shift,
        weight,
        weight if bias is None else bias,
        out,
        rows,
        inputs,
        outputs,
        epsilon,
        NORM=norm is not None,
        BIAS=bias is not None,
        GELU=gelu,
        ADD=add,
        ALONE=rows == 1,
        OUT=columns,
        DEPTH=depth,
        num_warps=4,
    )
