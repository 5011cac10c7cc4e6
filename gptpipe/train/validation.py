"""The loss on text that was held out, while training."""

from __future__ import annotations

import math

import torch

from gptpipe.dataset.loader import evaluation_batches
from gptpipe.dataset.stream import TokenStream
from gptpipe.train.compiler import uncompiled
from gptpipe.train.setup import Parts

_MOST_WINDOWS = 16  # at once


def validate(parts: Parts, stream: TokenStream, *, saving: bool) -> dict[str, float]:
    """The numbers of a validation, on all ranks, weighted by tokens. The state keeps the best.

    Args:
        stream: the held-out tokens.
        saving: whether this step is saved: only such a one can be the best.
    """
    state = parts.state
    state.validation_loss, bits = _score(parts, stream)
    if saving and (state.best_loss is None or state.validation_loss < state.best_loss):
        state.best_loss, state.best_step = state.validation_loss, state.step
    numbers = {
        "validation/loss": state.validation_loss,
        "validation/perplexity": math.exp(min(state.validation_loss, 700.0)),
        "validation/bits_per_byte": bits,
    }
    if parts.job.train.validate_train:
        numbers["validation/train_loss"], _ = _score(parts, parts.training)
    return numbers


def _score(parts: Parts, stream: TokenStream) -> tuple[float, float]:
    """Nats per token and bits per byte over the first windows of a split, or over windows spread over it."""
    ranks, model = parts.ranks, parts.model
    batches = evaluation_batches(
        stream,
        parts.job.model.context_length,
        max(1, min(parts.state.micro_batch, _MOST_WINDOWS)),
        parts.job.train.validate_tokens,
        ranks.rank,
        ranks.world_size,
    )
    byte_lengths = torch.from_numpy(parts.tokenizer.byte_lengths)
    model.eval()
    nats = torch.zeros((), dtype=torch.float64, device=ranks.device)
    tokens = size = 0
    # a batch of another size than training's is not worth compiling for
    with torch.no_grad(), parts.precision.autocast(), uncompiled(parts.state):
        for inputs, targets in batches:
            nats += model(inputs.to(ranks.device), targets.to(ranks.device))
            tokens += targets.numel()
            size += int(byte_lengths[targets].sum())
    model.train()
    total, count, length = ranks.sum(nats.item(), tokens, size)
    return total / count, total / math.log(2) / length
