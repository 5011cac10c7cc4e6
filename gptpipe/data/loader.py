"""Batches (inputs, targets) of shape (B, T), targets one to the right: shuffled for training, in order to evaluate.

The windows of a split start every `context_length` tokens of its stream and hold one token more, which is the
next one's first: every token but the stream's first is a target once. Training leaves out the last, shorter
window; evaluation scores it too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from gptpipe.data.order import windows_of
from gptpipe.data.tokens import TokenStream
from gptpipe.errors import UserError

Batch = tuple[torch.Tensor, torch.Tensor]


class TrainLoader:
    """The training samples of one rank. The whole state is `samples_seen`.

    Attributes:
        samples_seen: samples read by all ranks together; setting it goes to any place at once.
        seconds_waited: time spent in here.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.windows = count_windows(stream, context_length)
        check_ranks(batch_size, world_size)
        self._stream = stream
        self._context = context_length
        self._batch = batch_size
        self._seed = seed
        self._configuration = f"context={context_length},join=documents,shuffle=global"
        self._share = (rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.samples_seen = 0
        self.seconds_waited = 0.0

    def next_batch(self) -> Batch:
        """This rank's part of the next global batch: int64 tensors of shape (B, T)."""
        began = time.perf_counter()
        first, last = self._share
        numbers = self.sample_windows(self.samples_seen + first, self.samples_seen + last)
        self.samples_seen += self._batch
        batch = gather(self._stream, numbers * self._context, self._context)
        self.seconds_waited += time.perf_counter() - began
        return batch

    def sample_windows(self, start: int, stop: int) -> np.ndarray:
        """The windows of samples `start` to `stop`, shape (stop - start,), int64."""
        samples = np.arange(start, stop, dtype=np.int64)
        return windows_of(samples, self.windows, self._stream.dataset.id, self._seed, self._configuration)


def check_ranks(batch_size: int, world_size: int) -> None:
    """A UserError when a rank would have no window of a batch."""
    if batch_size < world_size:
        raise UserError(
            f"{world_size} ranks share a batch of {batch_size} windows",
            where="train.batch_size",
            hint="raise it to the number of ranks, or use fewer ranks",
        )


def count_windows(stream: TokenStream, context_length: int) -> int:
    """Whole windows in a stream; a UserError when there is none."""
    windows = (stream.length - 1) // context_length
    if windows < 1:
        raise UserError(
            f"the {stream.split} split has {stream.length} tokens, fewer than the context of "
            f"{context_length} and one more",
            where=stream.dataset.url,
            hint="shorten model.context_length or give more text",
        )
    return windows


def gather(stream: TokenStream, starts: np.ndarray, length: int) -> Batch:
    """Windows of `length` tokens from `starts`, as (inputs, targets), each (len(starts), length), int64."""
    tokens = np.stack([stream.read(int(start), int(start) + length + 1) for start in starts]).astype(np.int64)
    whole = torch.from_numpy(tokens)
    return whole[:, :-1], whole[:, 1:]


def evaluation_windows(length: int, context_length: int, max_tokens: int = 0) -> list[tuple[int, int]]:
    """(start, number of targets) of the windows that are scored, in order, each target once.

    Args:
        length: tokens in the stream.
        max_tokens: with a limit, that many tokens' worth of whole windows, spread evenly over the stream.
    """
    starts = range(0, length - 1, context_length)
    windows = [(start, min(context_length, length - 1 - start)) for start in starts]
    wanted = max(1, max_tokens // context_length)
    if max_tokens and wanted < len(windows):
        windows = [windows[i * len(windows) // wanted] for i in range(wanted)]
    return windows


def evaluation_batches(
    stream: TokenStream,
    context_length: int,
    batch_size: int,
    max_tokens: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Plain windows in order, this rank's share of them, `batch_size` at a time and of equal length in a batch."""
    mine = evaluation_windows(stream.length, context_length, max_tokens)[rank::world_size]
    whole = [start for start, size in mine if size == context_length]
    for i in range(0, len(whole), batch_size):
        yield gather(stream, np.array(whole[i : i + batch_size]), context_length)
    for start, size in mine:
        if size < context_length:
            yield gather(stream, np.array([start]), size)
