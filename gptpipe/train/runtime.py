"""How a rank runs: device, precision, threads, compiled blocks, and how many windows it takes at once.

None of it decides which samples are read, but the sums depend on it to the last bit, so it is stored with the
checkpoint and used again after a stop.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch
from torch import nn

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.cores import usable_cores
from gptpipe.errors import UserError
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import Precision
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.distributed import Ranks
from gptpipe.train.state import TrainState

log = logging.getLogger(__name__)
_SHARE_OF_RAM = 0.7  # of what is available, shared by the ranks of a host
_SHARE_OF_GPU = 0.92
_LESS_MEMORY = (
    "choose a smaller preset, a shorter model.context_length, train.activation_checkpointing=true or "
    "train.micro_batch=1"
)


def settle(config: TrainConfig, ranks: Ranks, state: TrainState) -> Precision:
    """Threads and precision: as before after a stop on as many ranks, else chosen here. The micro-batch comes later."""
    if state.world_size != ranks.world_size:
        state.threads = config.threads or max(1, usable_cores() // ranks.local_world_size)
        state.micro_batch = 0
    elif config.threads not in (0, state.threads) and ranks.rank == 0:
        log.warning(
            "train.threads=%d is not taken: a training goes on with the threads it began with, %d, for the same bits",
            config.threads,
            state.threads,
        )
    precision = Precision.choose(state.precision or config.precision, ranks.device)
    state.precision, state.world_size = precision.name, ranks.world_size
    torch.set_num_threads(state.threads)
    if ranks.device.type == "cuda":
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        else:
            torch.set_float32_matmul_precision("high")  # TF32
    return precision


def check_memory(config: TrainConfig, model: ModelConfig, ranks: Ranks, precision: str) -> None:
    """Before anything is allocated: a step of one window must fit at all.

    Raises:
        UserError: it needs more than the device has; on a CPU the ranks of a host share its memory.
    """
    needed = MemoryBudget.of(model, config, 1, precision, ranks.device.type, ranks.world_size).total
    if ranks.device.type == "cuda":
        there, where = torch.cuda.get_device_properties(ranks.device).total_memory, "a GPU"
    else:
        there, where = psutil.virtual_memory().total // ranks.local_world_size, "a rank"
    if needed > there:
        raise UserError(
            f"training needs at least {needed / 1e9:.1f} GB, there are {there / 1e9:.1f} for {where}",
            where=f"model.n_layer={model.n_layer}, n_embd={model.n_embd} on {socket.gethostname()}",
            hint=_LESS_MEMORY,
        )


def out_of_memory(error: Exception) -> UserError:
    """What a person can do about a GPU whose memory did not suffice."""
    return UserError(f"the GPU's memory is full: {error}", where=socket.gethostname(), hint=_LESS_MEMORY)


def compile_blocks(model: GPT, config: TrainConfig, state: TrainState, trial: Callable[[], None], ranks: Ranks) -> None:
    """Compile each block, if that is asked for and works; one line says why it does not.

    Blocks, not the whole: that takes seconds instead of minutes, and gradients are sent while others are made.

    Args:
        trial: a forward and backward pass.
    """
    compiles = ranks.device.type == "cuda" if config.compile == "auto" else config.compile
    if state.compiled is not None and state.step:
        compiles = state.compiled
    failed = False
    if compiles:
        for block in model.h:
            block.compile(dynamic=False)
        try:
            trial()
        except torch.OutOfMemoryError:
            pass  # fewer windows at once are tried next
        except Exception as error:  # whatever the compiler stumbles over, training works without it
            failed = True
            if ranks.is_first:
                log.warning("torch.compile failed, going on without it: %s", f"{type(error).__name__}: {error}"[:200])
    if ranks.any(failed):  # all ranks alike
        for block in model.h:
            block._compiled_call_impl = None
        compiles = False
    state.compiled = bool(compiles)


def choose_micro_batch(
    config: TrainConfig, model: ModelConfig, ranks: Ranks, state: TrainState, trial: Callable[[int], None]
) -> int:
    """Windows that a rank takes at once: given, as before the stop, or as many as fit into memory.

    On a GPU that is tried out, on a CPU the prediction is held against the memory that is free.

    Args:
        trial: a forward and backward pass over so many windows.
    """
    share = math.ceil(config.batch_size / ranks.world_size)
    if state.micro_batch:
        return state.micro_batch
    if config.micro_batch != "auto":
        return min(config.micro_batch, share)
    size = share
    while size > 1 and not _fits(size, config, model, ranks, state, trial):
        size = math.ceil(size / 2)
    return int(ranks.min(size))


def _fits(
    size: int, config: TrainConfig, model: ModelConfig, ranks: Ranks, state: TrainState, trial: Callable[[int], None]
) -> bool:
    budget = MemoryBudget.of(model, config, size, state.precision, ranks.device.type, ranks.world_size)
    if ranks.device.type == "cpu":
        return bool(budget.total < _SHARE_OF_RAM * psutil.virtual_memory().available / ranks.local_world_size)
    with suppress(torch.OutOfMemoryError):
        torch.cuda.reset_peak_memory_stats()
        trial(size)
        used = torch.cuda.max_memory_allocated() + budget.optimizer + budget.gradients * budget.accumulates
        return bool(used < _SHARE_OF_GPU * torch.cuda.get_device_properties(ranks.device).total_memory)
    torch.cuda.empty_cache()
    return False


def run_trial(wrapped: nn.Module, precision: Precision, windows: int, model: ModelConfig, ranks: Ranks) -> None:
    """A forward and backward pass over windows of zeros, whose gradients are thrown away."""
    tokens = torch.zeros((windows, model.context_length), dtype=torch.int64, device=ranks.device)
    with precision.autocast():
        loss = wrapped(tokens, tokens)
    loss.backward()
    wrapped.zero_grad(set_to_none=True)
