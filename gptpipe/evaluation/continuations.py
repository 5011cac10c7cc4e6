"""How likely a model finds given continuations of given contexts: what choice and last-word tasks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptpipe.model.gpt import GPT
from gptpipe.model.loss import token_scores
from gptpipe.model.memory import keep_freed_memory
from gptpipe.model.precision import Precision
from gptpipe.progress import NowAndThen
from gptpipe.tokenizer import Tokenizer
from gptpipe.wording import counted, duration


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: the logarithm of its probability in nats, its tokens, and whether each is the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it, cut where the whole's tokens are cut.

    White space at the context's end goes to the continuation, since tokens begin with it; an empty context is
    `<|endoftext|>` (both as lm-evaluation-harness does).
    """
    if not context:
        return [tokenizer.end_of_text], tokenizer.encode(continuation)
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    before = tokenizer.encode(stripped)
    return before, whole[len(before) :]


@torch.no_grad()
def likelihoods(
    model: GPT, pairs: Sequence[tuple[list[int], list[int]]], *, batch_tokens: int, precision: str = "float32"
) -> list[Likelihood]:
    """Of each continuation after its context, both token ids, neither empty; contexts are cut at their beginning where
    both do not fit.

    Args:
        batch_tokens: that the model takes at once.
    """
    keep_freed_memory()
    training, device = model.training, next(model.parameters()).device
    model.eval()
    longest = model.config.context_length
    rows = [(context + continuation)[-(longest + 1) :] for context, continuation in pairs]
    scored = [min(len(continuation), len(row) - 1) for (_, continuation), row in zip(pairs, rows, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    likelihoods_of: dict[int, Likelihood] = {}
    say = NowAndThen()

    def how_far(seconds: float) -> str:
        left = duration(seconds * (len(rows) - len(likelihoods_of)) / max(1, len(likelihoods_of)))
        return f"scored {len(likelihoods_of):,} of {counted(len(rows), 'continuation')}  {left} left"

    while order:
        width = len(rows[order[0]]) - 1
        size = max(1, batch_tokens // width)
        batch, order = order[:size], order[size:]
        tokens = np.zeros((len(batch), width + 1), dtype=np.int64)
        counts = np.zeros((len(batch), width), dtype=bool)
        for line, mask, i in zip(tokens, counts, batch, strict=True):
            line[: len(rows[i])] = rows[i]
            mask[len(rows[i]) - 1 - scored[i] : len(rows[i]) - 1] = True
        with Precision(precision, device.type).autocast():
            hidden = model.hidden(torch.from_numpy(tokens[:, :-1]).to(device))
        targets = torch.from_numpy(tokens[:, 1:][counts]).to(device)
        nats, _, right = token_scores(hidden[torch.from_numpy(counts).to(device)], model.lm_head.weight, targets)
        sizes = [scored[i] for i in batch]
        pieces = zip(batch, torch.split(nats.double(), sizes), torch.split(right, sizes), strict=True)
        for i, costs, rights in pieces:
            likelihoods_of[i] = Likelihood(-float(costs.sum()), len(costs), bool(rights.all()))
        say(how_far)
    model.train(training)
    return [likelihoods_of[i] for i in range(len(rows))]
