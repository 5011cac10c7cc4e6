"""Triton kernels of the output layer's loss: a row of logits is read twice and written once.

Imported only where they run, by `gptpipe.model.fused`: importing Triton takes half a second, and it is not everywhere.
All arithmetic is float32, whatever the logits are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptpipe.model.gpus import on_device

# Columns that a program holds at once, and its warps of 32 threads; tests/benchmarks/gpu.py tries others.
COLUMNS, WARPS = 4096, 8
_LOWEST = tl.constexpr(-3.0e38)  # below every logit, and unlike minus infinity a number that can be taken off itself


@triton.jit
def _softmax_cross_entropy(  # type: ignore[no-untyped-def]
    logits,
    targets,
    nats,
    top,
    right,
    stride,
    vocabulary,
    width,
    ignored,
    GRADIENT: tl.constexpr,
    SCORES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its cross-entropy, and what `GRADIENT` and `SCORES` ask for.

    `width` is a multiple of 16, the vocabulary need not be: masks go by the width, else every element is loaded alone.
    """
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    target = tl.load(targets + row)
    scored = target != ignored
    score = tl.load(line + tl.maximum(target, 0)).to(tl.float32)
    offsets = tl.arange(0, BLOCK)
    greatest = tl.full((), _LOWEST, tl.float32)
    total, likeliest = tl.full((), 0.0, tl.float32), tl.full((), 0, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + offsets
        values = tl.load(line + columns, mask=columns < width, other=_LOWEST).to(tl.float32)
        values = tl.where(columns < vocabulary, values, _LOWEST)
        highest = tl.max(values, axis=0)
        if SCORES:  # of those that are as likely the first counts
            likeliest = tl.where(highest > greatest, start + tl.argmax(values, axis=0), likeliest)
        now = tl.maximum(greatest, highest)
        total = total * tl.exp(greatest - now) + tl.sum(tl.exp(values - now), axis=0)
        greatest = now
    tl.store(nats + row, tl.where(scored, tl.log(total) + greatest - score, 0.0))
    if SCORES:
        tl.store(top + row, 1.0 / total)  # the likeliest token's exponential is exp(0)
        tl.store(right + row, (likeliest == target).to(tl.int8))
    if GRADIENT:
        scale = tl.where(scored, 1.0 / total, 0.0)
        taken = tl.where(scored, 1.0, 0.0)
        for start in range(0, width, BLOCK):
            columns = start + offsets
            values = tl.load(line + columns, mask=columns < width, other=_LOWEST).to(tl.float32)
            values = tl.where(columns < vocabulary, values, _LOWEST)
            slope = tl.exp(values - greatest) * scale - tl.where(columns == target, taken, 0.0)
            tl.store(line + columns, slope, mask=columns < width)


def loss_and_gradient_(
    logits: Tensor, targets: Tensor, vocabulary: int, ignored: int, *, columns: int = COLUMNS, warps: int = WARPS
) -> Tensor:
    """Turn logits into the gradient of the summed cross-entropy by them, in place.

    Args:
        logits: (rows, width), the columns of a row side by side.
        targets: (rows,), int64; rows with `ignored` have neither loss nor gradient.
        vocabulary: columns that are logits. The rest is padding, whatever it holds, and gets a gradient of zero.

    Returns:
        The cross-entropies in nats, (rows,), float32.
    """
    nats = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _launch(logits, targets, (nats, nats, nats), vocabulary, ignored, True, False, columns, warps)
    return nats


def losses(logits: Tensor, targets: Tensor, vocabulary: int, ignored: int) -> Tensor:
    """The cross-entropies alone, as `loss_and_gradient_` gives them; the logits stay as they are."""
    nats = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _launch(logits, targets, (nats, nats, nats), vocabulary, ignored, False, False, COLUMNS, WARPS)
    return nats


def scores(logits: Tensor, targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """How each target fares; the logits stay as they are.

    Returns:
        The cross-entropies in nats, the probability of the likeliest token, both (rows,) float32, and whether the
        target is the first of the likeliest, (rows,) bool.
    """
    nats, top = torch.empty((2, len(logits)), dtype=torch.float32, device=logits.device)
    right = torch.empty(len(logits), dtype=torch.int8, device=logits.device)
    _launch(logits, targets, (nats, top, right), vocabulary, -1, False, True, COLUMNS, WARPS)
    return nats, top, right.bool()


def _launch(
    logits: Tensor,
    targets: Tensor,
    results: tuple[Tensor, Tensor, Tensor],
    vocabulary: int,
    ignored: int,
    gradient: bool,
    with_scores: bool,
    columns: int,
    warps: int,
) -> None:
    if not len(logits):
        return
    assert logits.stride(1) == 1
    with on_device(logits.device):
        _softmax_cross_entropy[(len(logits),)](
            logits,
            targets.contiguous(),
            *results,
            logits.stride(0),
            vocabulary,
            logits.shape[1],
            ignored,
            GRADIENT=gradient,
            SCORES=with_scores,
            BLOCK=min(columns, triton.next_power_of_2(logits.shape[1])),
            num_warps=warps,
        )
