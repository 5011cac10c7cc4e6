"""Running a model over windows: batches that pad little, sums that do not depend on them."""

from __future__ import annotations

import numpy as np
import torch

from gptpipe.errors import UserError
from gptpipe.evaluation.documents import Documents
from gptpipe.evaluation.tally import Tally
from gptpipe.model.gpt import GPT
from gptpipe.model.loss import token_scores
from gptpipe.model.memory import keep_freed_memory
from gptpipe.model.precision import Precision
from gptpipe.progress import NowAndThen
from gptpipe.wording import counted, duration


def tokens_at_once(windows: int, context: int) -> int:
    """Tokens that a model takes at once: those of so many windows.

    Args:
        windows: 0 is 8, or fewer where 8 have more than 8,192 tokens: the memory that is needed grows with tokens.
        context: tokens of a window.
    """
    return (windows or max(1, min(8, 8192 // context))) * context


def batches_of(windows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Numbers of windows in batches of about so many tokens, the longest windows first: equal lengths pad nothing."""
    order = np.argsort(-windows[:, 1], kind="stable")
    batches = []
    while len(order):
        size = max(1, batch_tokens // int(windows[order[0], 1]))
        batches.append(order[:size])
        order = order[size:]
    return batches


@torch.no_grad()
def score(
    model: GPT,
    documents: Documents,
    windows: np.ndarray,
    *,
    batch_tokens: int,
    precision: str = "float32",
    rank: int = 0,
    world_size: int = 1,
) -> Tally:
    """The sums of this rank's share of the windows.

    Args:
        windows: (n, 3), as `gptpipe.dataset.windows` and `gptpipe.evaluation.windows` make them.
        batch_tokens: tokens that the model takes at once; the sums do not depend on it.
    """
    keep_freed_memory()
    training, device = model.training, next(model.parameters()).device
    model.eval()
    tally = Tally.empty(len(documents), model.config.context_length, model.config.vocab_size)
    batches = batches_of(windows, batch_tokens)[rank::world_size]
    done, total, say = 0, sum(len(batch) for batch in batches), NowAndThen()

    def how_far(seconds: float) -> str:
        left = duration(seconds * (total - done) / max(1, done))
        return f"scored {done:,} of {counted(total, 'window')}  {tally.tokens / seconds:,.0f} tokens/s  {left} left"

    with Precision(precision, device.type).autocast():
        for batch in batches:
            _score_batch(model, documents, windows[batch], tally)
            done += len(batch)
            say(how_far)
    model.train(training)
    return tally


def _score_batch(model: GPT, documents: Documents, windows: np.ndarray, tally: Tally) -> None:
    tokens, length = _rows(documents, windows)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    columns = np.arange(length)
    last = windows[:, 1:2]
    scored = (columns < last) & (columns >= last - windows[:, 2:3])  # (B, T)
    device = next(model.parameters()).device
    hidden = model.hidden(torch.from_numpy(inputs).to(device))[torch.from_numpy(scored).to(device)]
    ids = targets[scored]
    nats, top, right = token_scores(hidden, model.lm_head.weight, torch.from_numpy(ids).to(device))
    if not nats.isfinite().all():
        raise UserError("the loss is not finite", where="the model", hint="take earlier weights, or score in float32")
    places = (windows[:, :1] + 1 + columns)[scored]
    tally.add(
        documents=documents.of(places),
        places=places,
        positions=np.broadcast_to(columns + 1, scored.shape)[scored],
        targets=ids,
        sizes=documents.tokenizer.byte_lengths[ids],
        nats=nats.double().cpu().numpy(),
        top=top.double().cpu().numpy(),
        right=right.cpu().numpy(),
    )


def _rows(documents: Documents, windows: np.ndarray) -> tuple[np.ndarray, int]:
    """Tokens of windows, (B, T + 1), zeros after the end of those that are shorter, and T."""
    length = int(windows[:, 1].max())
    rows = np.zeros((len(windows), length + 1), dtype=np.int64)
    for row, (begin, size, _) in zip(rows, windows, strict=True):
        row[: size + 1] = documents.read(int(begin), int(begin + size + 1))
    return rows, length
