"""How many windows a rank takes at once, and the trial that confirms it and compiles what is compiled."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import psutil
import torch
from torch import nn

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.model.gpt import GPT
from gptpipe.model.loss import chunk_rows
from gptpipe.model.precision import Precision
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.compiler import do_without, uncompiled, within
from gptpipe.train.distributed import Ranks
from gptpipe.train.state import TrainState

log = logging.getLogger(__name__)
_SHARE_OF_RAM = 0.7  # of what is available, shared by the ranks of a host
_SHARE_OF_GPU = 0.92  # of what other processes leave
# What a compiled block holds of a window beside what it holds uncompiled, with a margin: a step of 124M and 32 windows
# held 15.1 and 11.9 GB on an H200, 1.27 times as much.
_COMPILED = 1.35
Trial = Callable[[int], None]


class MicroBatch:
    """Chooses the windows that a rank takes at once: given, as before a stop, or as many as fit into memory.

    On a CPU the prediction is compared with the memory that is free. On a GPU two small trials, not compiled, say what
    a window takes; the size that follows is tried as it will be run. So the compiler works for the size that fits, not
    for each that is thought of.

    Args:
        trial: a forward and backward pass over that many windows, whose gradients are thrown away.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig, ranks: Ranks, state: TrainState, trial: Trial) -> None:
        self._config, self._model, self._ranks, self._state, self._trial = config, model, ranks, state, trial
        self._share = math.ceil(config.batch_size / ranks.world_size)

    def choose(self) -> int:
        """The size to begin with, the same on all ranks."""
        config = self._config
        if self._state.micro_batch:
            return self._state.micro_batch
        if config.micro_batch != "auto":
            return min(config.micro_batch, self._share)
        if self._ranks.device.type == "cpu":
            available = _SHARE_OF_RAM * psutil.virtual_memory().available / self._ranks.local_world_size
            size = self._largest(lambda size: self._budget(size).total < available)
        else:
            size = self._predicted()
        return int(self._ranks.min(size))

    def confirm(self, gpt: GPT, size: int) -> int:
        """The size, or the next smaller one that fits; compiles what is to be compiled, and does without if need be."""
        state, auto = self._state, self._config.micro_batch == "auto" and not self._state.micro_batch
        while state.compiled or (auto and self._ranks.device.type == "cuda"):
            outcome = self._attempt(size)
            if self._ranks.any(outcome == "failed"):  # all ranks alike
                do_without(gpt, state)
                continue
            if not (self._ranks.any(outcome == "full") and auto and size > 1):
                break
            size = math.ceil(size / 2)
        return size

    def _attempt(self, size: int) -> Literal["fits", "full", "failed"]:
        compiled = self._state.compiled
        try:
            with within(self._config.compile_timeout) if compiled else nullcontext():
                return "fits" if self._measure(size) + self._rest() < self._room() else "full"
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return "full"
        except Exception as error:  # whatever the compiler stumbles over, training works without it
            if not compiled:
                raise
            if self._ranks.is_first:
                said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                log.warning("torch.compile failed, going on without it: %s", said)
            return "failed"

    def _predicted(self) -> int:
        """The largest size for which memory should do, by two trials large enough to fill a chunk of the loss."""
        unit = max(1, math.ceil(chunk_rows("cuda", torch.bfloat16) / self._model.context_length))
        if self._share <= 2 * unit:
            return self._share
        try:
            with uncompiled(self._state):
                one, two = self._measure(unit), self._measure(2 * unit)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return unit
        each = (two - one) / unit * (_COMPILED if self._state.compiled else 1)
        fixed = one - (two - one)
        room = self._room() - self._rest()
        return self._largest(lambda size: fixed + size * each < room)

    def _largest(self, fits: Callable[[int], bool]) -> int:
        """This rank's share of a batch, halved until it fits."""
        size = self._share
        while size > 1 and not fits(size):
            size = math.ceil(size / 2)
        return size

    def _measure(self, size: int) -> int:
        """Bytes on the GPU at most at once in a trial; 0 on a CPU, where nothing says."""
        if self._ranks.device.type == "cpu":
            self._trial(size)
            return 0
        torch.cuda.reset_peak_memory_stats()
        self._trial(size)
        return torch.cuda.max_memory_allocated()

    def _rest(self) -> int:
        """Bytes that training holds and a trial does not: moments, and gradients that are there before it begins."""
        budget = self._budget(1)
        return budget.optimizer + budget.gradients * budget.accumulates

    def _room(self) -> float:
        """Bytes on the device that training may take."""
        if self._ranks.device.type == "cpu":
            return math.inf
        free, _ = torch.cuda.mem_get_info(self._ranks.device)
        return _SHARE_OF_GPU * (free + torch.cuda.memory_reserved(self._ranks.device))

    def _budget(self, size: int) -> MemoryBudget:
        ranks = self._ranks
        return MemoryBudget.of(
            self._model, self._config, size, self._state.precision, ranks.device.type, ranks.world_size
        )


def run_trial(wrapped: nn.Module, precision: Precision, windows: int, model: ModelConfig, ranks: Ranks) -> None:
    """A forward and backward pass over windows of zeros, whose gradients are thrown away."""
    tokens = torch.zeros((windows, model.context_length), dtype=torch.int64, device=ranks.device)
    try:
        with precision.autocast():
            loss = wrapped(tokens, tokens)
        loss.backward()
    finally:  # also where it failed half-way
        wrapped.zero_grad(set_to_none=True)
