"""The little that is distributed: who this rank is, sums over all ranks, and DDP with its buckets in place."""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptpipe.errors import UserError
from gptpipe.wording import counted

BUCKET_MEGABYTES = 25  # see tests/benchmarks/RESULTS.md
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a slow last upload on rank 0 keeps the others waiting


@dataclass(frozen=True)
class Ranks:
    """This rank among all. With one rank every method is the identity and no process group is made."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Read torchrun's environment and, with several ranks, join the process group (NCCL or gloo).

        Raises:
            UserError: this host has fewer GPUs than ranks, which NCCL refuses in words of its own.
        """
        rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
        world, local_world = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        place = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
        if place.type == "cuda":
            if (have := torch.cuda.device_count()) < local_world:
                raise UserError(
                    f"{counted(local_world, 'rank')} with a GPU each, and {counted(have, 'GPU')} in this host",
                    where=f"train.nproc on {socket.gethostname()}",
                    hint=f"set train.nproc={have}, or train.device=cpu",
                )
            torch.cuda.set_device(place)
        if world > 1:
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
        return cls(rank, local, world, local_world, place)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def min(self, value: float) -> float:
        """The smallest value on any rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return float(tensor)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        return self.sum(float(flag))[0] > 0

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: nn.Module, example: tuple[Tensor, Tensor]) -> nn.Module:
        """The model under DDP, its gradient buckets already in their final order.

        DDP orders its buckets by the first backward pass and uses that order from the second step on, which
        from three ranks on changes the sums: a resumed run would make its first step in the other order. So one
        backward pass over `example` is spent before the first step, and its gradients are thrown away.
        """
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=BUCKET_MEGABYTES
        )
        for _ in range(2):  # the buckets are rebuilt at the forward pass after the first backward pass
            wrapped(*example).backward()
        wrapped.zero_grad(set_to_none=True)
        return wrapped


def without_sync(model: nn.Module, skip: bool) -> Any:
    """The context for a micro-step: gradients are summed over ranks only in the last one."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()
