"""Windows over documents that are scored apart from one another; for joined ones see `gptpipe.dataset.windows`."""

from __future__ import annotations

import numpy as np

_GOLDEN = 0.6180339887498949  # the multiples of it, modulo 1, are spread evenly however many are taken


def apart_windows(starts: np.ndarray, ends: np.ndarray, context: int, stride: int = 0) -> np.ndarray:
    """Windows (begin, length, scored) over documents that each begin after a separator, shape (n, 3), int64.

    A document's last window reaches back as far as the context does (the rolling windows of EleutherAI's
    lm-evaluation-harness).

    Args:
        starts, ends: each document's first token and the one after its last, shape (D,). The token before the first
            is the separator; the stream's own first document has its at place -1.
    """
    stride = stride or context
    sizes = ends - starts
    extra = np.maximum(0, -(-(sizes - context) // stride))
    counts = np.where(sizes > 0, 1 + extra, 0)
    document = np.repeat(np.arange(len(starts)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
    until = np.minimum(context + number * stride, sizes[document])
    before = np.where(number > 0, context + (number - 1) * stride, 0)
    length = np.minimum(until, context)
    begin = starts[document] + until - 1 - length
    return np.stack([begin, length, until - before], axis=1).astype(np.int64)


def spread(sizes: np.ndarray, max_tokens: int) -> np.ndarray:
    """Numbers of documents of about that many tokens together, spread evenly over all, in order; at least one."""
    order = np.argsort(np.arange(len(sizes)) * _GOLDEN % 1, kind="stable")
    taken = int(np.searchsorted(np.cumsum(sizes[order]), max_tokens, side="right"))
    return np.sort(order[: max(1, taken)])
