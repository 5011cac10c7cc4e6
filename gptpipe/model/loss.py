"""Cross-entropy of a linear output layer, in chunks: the (B·T, V) logits are never held whole.

The gradients of a chunk are made while its logits are at hand, in the forward pass, so that the backward pass
only scales them (the idea of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024).

The vocabulary is padded to a multiple that matrix units like: in half precision in the copy of the matrix that is
made for the product anyway, else in a copy of its last rows. The padding has no part in maximum, sum or gradient; the
parameter itself never has it.

On a GPU with Triton one kernel turns a chunk's logits into their gradient (`kernels.py`); elsewhere torch's functions
go through a chunk a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gptpipe.model.fused import can_add_wide, loss_kernels

# Rows of logits made at once. Fewer starve the matrix products and add to the gradient of the matrix more often,
# more take memory; see tests/benchmarks/RESULTS.md.
CHUNK_ROWS = {"cpu": 1024, "cuda": 8192}  # in float32; in half precision on a CPU half as many do as well
SOFTMAX_ROWS = 8  # of these, this many at once on a CPU: what stays in its cache costs no memory traffic
VOCABULARY_MULTIPLE = 64
GRADIENT_ROWS = (
    4096  # of the matrix's gradient that are made at once where they have to be converted: faster, and less memory
)
IGNORED = -100  # targets that are not scored, as in torch.nn.functional.cross_entropy


@dataclass
class SharedGradient:
    """Where the output layer leaves the gradient of its matrix for a tied embedding, which adds its rows to it.

    By themselves they would make two gradients of the whole matrix and add them.
    """

    gradient: Tensor | None = None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, shared: SharedGradient | None
    ) -> Tensor:
        needs = any(ctx.needs_input_grad[:2])
        vocabulary, parts = len(weight), _padded(weight, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs else None
        grad_weight = None
        if needs:  # the first chunk writes it; without any it stays zero
            grad_weight = torch.empty_like(weight) if len(hidden) else torch.zeros_like(weight)
        for rows, chunk, logits in _logits(hidden, parts, dtype):
            nats = _slopes_(logits, targets[rows], vocabulary, wide, keep=needs)
            total += nats.sum()
            if grad_hidden is None or grad_weight is None:
                continue
            for columns, part in parts:
                grad_hidden[rows] += logits[:, columns] @ part
            scored = (targets[rows] != IGNORED).unsqueeze(1)
            grad_hidden[rows] *= scored
            _add_product(grad_weight, logits[:, :vocabulary].t(), chunk * scored, first=rows.start == 0)
        ctx.gradients, ctx.shared = (grad_hidden, grad_weight), shared
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("gone through a second time: the gradients were scaled in place")
        hidden, weight = ctx.gradients
        if weight.dtype == torch.float64:  # where gradients are checked, they may be asked for again
            return hidden * grad, weight * grad, None, None, None
        ctx.gradients = None
        if ctx.shared is not None:
            ctx.shared.gradient = weight
        return hidden.mul_(grad), weight.mul_(grad), None, None, None


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, shared: SharedGradient) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shared, ctx.rows = shared, len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (tokens,) = ctx.saved_tensors
        gradient, ctx.shared.gradient = ctx.shared.gradient, None
        rows = grad.flatten(0, -2)
        if gradient is None:
            return rows.new_zeros(ctx.rows, rows.shape[1]).index_add_(0, tokens.flatten(), rows), None, None
        # autograd holds this very tensor as the matrix's gradient so far, and has not handed it on yet
        gradient.index_add_(0, tokens.flatten(), rows)
        return None, None, None


def tied_embedding(weight: Tensor, tokens: Tensor, shared: SharedGradient) -> Tensor:
    """Rows of `weight` (V, D) at `tokens` (…), for a matrix that is the output layer's too."""
    embedded: Tensor = _TiedEmbedding.apply(weight, tokens, shared)  # type: ignore[no-untyped-call]
    return embedded


def chunk_rows(device: str, dtype: torch.dtype) -> int:
    """Rows of logits that are made at once, in type `dtype`."""
    if device != "cpu":
        return CHUNK_ROWS["cuda"]
    return CHUNK_ROWS["cpu"] if dtype.itemsize >= 4 else max(1, CHUNK_ROWS["cpu"] // 2)


def _padded(weight: Tensor, dtype: torch.dtype) -> list[tuple[slice, Tensor]]:
    """The matrix in that type, rows of zeros added up to a multiple of `VOCABULARY_MULTIPLE`, in parts.

    Returns:
        The parts in order, each with the columns of the logits that it makes. What is aligned is not copied.
    """
    vocabulary, width = weight.shape
    rows = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    as_it_is = vocabulary // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE if dtype == weight.dtype else 0
    parts = [(slice(0, as_it_is), weight[:as_it_is])] if as_it_is else []
    if as_it_is < rows:
        copy = weight.new_empty((rows - as_it_is, width), dtype=dtype)
        copy[: vocabulary - as_it_is] = weight[as_it_is:]
        copy[vocabulary - as_it_is :] = 0
        parts.append((slice(as_it_is, rows), copy))
    return parts


def _logits(
    hidden: Tensor, parts: list[tuple[slice, Tensor]], dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Logits in chunks of rows: which rows, those rows of `hidden` in type `dtype`, and their logits (rows, width).

    The columns after the vocabulary are padding. The next chunk's logits are written over these.
    """
    rows_at_once = chunk_rows(hidden.device.type, dtype)
    buffer = hidden.new_empty((min(rows_at_once, len(hidden)), parts[-1][0].stop), dtype=dtype)
    for start in range(0, len(hidden), rows_at_once):
        rows = slice(start, start + rows_at_once)
        chunk = hidden[rows].to(dtype)
        logits = buffer[: len(chunk)]
        for columns, part in parts:
            torch.mm(chunk, part.t(), out=logits[:, columns])
        yield rows, chunk, logits


def _slopes_(logits: Tensor, targets: Tensor, vocabulary: int, wide: torch.dtype, keep: bool) -> Tensor:
    """Turn logits (rows, width) into the gradient of the summed loss by them, in place: softmax minus one-hot.

    Args:
        targets: (rows,); those that are `IGNORED` have no loss, and a gradient that the caller leaves out.
        vocabulary: columns that are no padding.
        keep: whether the gradient is needed; otherwise `logits` may hold anything afterwards.

    Returns:
        Cross-entropies in nats, (rows,), float32 or of type `wide`.
    """
    if (fused := loss_kernels(logits)) is not None:
        work = fused.loss_and_gradient_ if keep else fused.losses
        nats: Tensor = work(logits, targets, vocabulary, IGNORED)
        return nats
    logits[:, vocabulary:] = -torch.inf
    index = targets.clamp(min=0).unsqueeze(1)
    nats, picked, _ = _softmax_(logits, index, wide, keep)
    if keep:
        logits.scatter_(1, index, (picked - 1).to(logits.dtype))
    return nats.where(targets != IGNORED, 0)


def _add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total (V, D) += left (V, rows) @ right (rows, D), where these may be of a smaller type.

    Args:
        first: whether `total` holds nothing yet; it is not read then.
    """
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if first else 1, out=total)
        return
    if left.dtype == torch.bfloat16 and can_add_wide(left.device):
        torch.addmm(total, left, right, beta=0 if first else 1, out_dtype=total.dtype, out=total)
        return
    for start in range(0, len(total), GRADIENT_ROWS):
        rows = slice(start, start + GRADIENT_ROWS)
        if first:
            total[rows] = left[rows] @ right
        else:
            total[rows] += left[rows] @ right


def _softmax_(logits: Tensor, index: Tensor, wide: torch.dtype, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits (rows, V) into probabilities in place, computed in type `wide`.

    Args:
        keep: whether the probabilities are needed; otherwise `logits` may be left as they are.

    Returns:
        The cross-entropy at `index` in nats, shape (rows,), the probability there and the greatest in the row, both
        of shape (rows, 1), all of type `wide`.
    """
    step = SOFTMAX_ROWS if logits.device.type == "cpu" else len(logits)
    nats = logits.new_empty((len(logits), 1), dtype=wide)
    picked, greatest = torch.empty_like(nats), torch.empty_like(nats)
    scratch = None if logits.dtype == wide else logits.new_empty((min(step, len(logits)), logits.shape[1]), dtype=wide)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        part = logits[rows]
        values = part if scratch is None else scratch[: len(part)].copy_(part)
        score, top = values.gather(1, index[rows]), values.amax(dim=1, keepdim=True)
        torch.softmax(values, dim=1, out=values)
        # The likeliest token has probability exp(0) / sum, so this is log-sum-exp without another pass of
        # exponentials, which cost more than the rest together on a CPU.
        greatest[rows] = values.amax(dim=1, keepdim=True)
        nats[rows] = top - greatest[rows].log() - score
        picked[rows] = values.gather(1, index[rows])
        if keep and scratch is not None:
            part.copy_(values)
    return nats.squeeze(1), picked, greatest


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, shared: SharedGradient | None = None
) -> Tensor:
    """Sum of the cross-entropies of `softmax(hidden @ weight.T)` at `targets`, in nats.

    Under autocast the products are made in its type; maximum, exponentials and sums are float32 (float64 for
    float64 inputs). A backward pass goes through it once.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,), int64; rows with `IGNORED` are not scored.
        shared: what `tied_embedding` was given, where the matrix is the embedding's too.

    Returns:
        A scalar: the sum, not the mean, so that parts of a batch add up to the whole.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype, shared)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def token_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How each target fares under `softmax(hidden @ weight.T)`, multiplied in the type of `weight`.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,), int64.

    Returns:
        Nats, the probability of the likeliest token, and whether that is the target; each (N,), the first two float32
        (float64 for a float64 `weight`).
    """
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    nats = hidden.new_empty(len(hidden), dtype=wide)
    top, right = torch.empty_like(nats), torch.empty_like(targets, dtype=torch.bool)
    vocabulary = len(weight)
    for rows, _, logits in _logits(hidden, _padded(weight, weight.dtype), weight.dtype):
        if (fused := loss_kernels(logits)) is not None:
            nats[rows], top[rows], right[rows] = fused.scores(logits, targets[rows], vocabulary)
            continue
        logits[:, vocabulary:] = -torch.inf
        nats[rows], picked, greatest = _softmax_(logits, targets[rows].unsqueeze(1), wide, keep=False)
        top[rows], right[rows] = greatest.squeeze(1), (picked >= greatest).squeeze(1)
        likeliest = right[rows].nonzero().squeeze(1) + rows.start  # or as likely as another: the first of them counts
        right[likeliest] = logits[likeliest - rows.start].argmax(dim=1) == targets[likeliest]
    return nats, top, right
