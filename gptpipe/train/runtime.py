"""How a rank runs: device, precision, threads, and whether a step fits at all.

None of it decides which samples are read, but the sums depend on it to the last bit, so it is stored with the
checkpoint and used again after a stop.
"""

from __future__ import annotations

import logging
import os
import socket

import psutil
import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.cores import usable_cores
from gptpipe.errors import UserError
from gptpipe.model.gpus import memory_said
from gptpipe.model.precision import Precision, has_bfloat16
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.distributed import Ranks
from gptpipe.train.state import TrainState

log = logging.getLogger(__name__)
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
    if precision.name == "bfloat16" and not has_bfloat16(ranks.device) and ranks.rank == 0:
        log.warning(
            "this CPU has no units for bfloat16: it is up to a hundred times slower here than float32, "
            "which train.precision=auto takes"
        )
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
        free, _ = torch.cuda.mem_get_info(ranks.device)
        if free < needed <= there:  # it would do, if nobody else were there
            raise UserError(
                f"training needs at least {needed / 1e9:.1f} GB, and {memory_said(ranks.device)}",
                where=f"{ranks.device} on {socket.gethostname()}",
                hint="wait for the others or end them, choose another GPU by CUDA_VISIBLE_DEVICES, or a smaller model",
            )
    else:
        there, where = psutil.virtual_memory().total // ranks.local_world_size, "a rank"
    if needed > there:
        raise UserError(
            f"training needs at least {needed / 1e9:.1f} GB, there are {there / 1e9:.1f} for {where}",
            where=f"model.n_layer={model.n_layer}, n_embd={model.n_embd} on {socket.gethostname()}",
            hint=_LESS_MEMORY,
        )


def out_of_memory(error: Exception, device: torch.device) -> UserError:
    """What a person can do about a GPU whose memory did not suffice."""
    asked = str(error).split(". ")
    said = ". ".join(asked[:2]).rstrip(".")
    return UserError(
        f"the GPU's memory is full ({memory_said(device)}): {said}",
        where=f"{device} on {socket.gethostname()}",
        hint=_LESS_MEMORY,
    )
