"""Muon for the matrices of the blocks: momentum whose singular values are made alike (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptpipe.model.precision import has_bfloat16

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that lifts singular values to near one fastest
_ITERATIONS = 5
_SMALLEST = 1e-7  # norm that is divided by


@dataclass(frozen=True)
class _Part:
    """A matrix: some rows of a parameter."""

    parameter: Tensor
    rows: slice

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.parameter.shape
        return len(range(*self.rows.indices(rows))), columns

    @property
    def cost(self) -> int:
        """Of making it orthogonal, in multiplications of an iteration."""
        few, many = sorted(self.shape)
        return 2 * few * few * many + few**3


class Muon:
    """Muon with Nesterov's momentum, updates of AdamW's size (Liu et al. 2025), so that both take one learning rate.

    Ranks share the work: each makes some of the matrices orthogonal and tells the others, so that all take the same
    step, to the bit. Momentum is kept by all of them.

    Args:
        parameters: matrices, (out, in).
        share: its learning rate, as a share of the schedule's.
        parts: of a parameter that is several matrices, one below the other, their numbers of rows.
        rank, world_size: whose share this one makes.

    Attributes:
        param_groups: as torch's optimizers have them, with `lr` and `weight_decay`.
        state: of each parameter that has taken a step: `momentum_buffer`.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        learning_rate: float,
        share: float = 1.0,
        weight_decay: float,
        momentum: float,
        parts: Mapping[Tensor, Sequence[int]] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        every = list(parameters)
        self.param_groups: list[dict[str, Any]] = [
            {"params": every, "weight_decay": weight_decay, "lr": learning_rate * share, "share": share}
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._momentum, self._rank = momentum, rank
        matrices = [part for parameter in every for part in _parts(parameter, (parts or {}).get(parameter))]
        self._shares = _shared_out(matrices, world_size)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step with the gradients there are; every parameter has one."""
        (group,) = self.param_groups
        for parameter in group["params"]:
            self._state_of(parameter)["momentum_buffer"].lerp_(parameter.grad, 1 - self._momentum)
        made: list[Tensor] = []
        for _, alike in groupby(self._shares[self._rank], key=lambda part: part.shape):
            made += orthogonal(torch.stack([self._direction(part) for part in alike]))
        for parameter in group["params"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        for part, update in self._exchanged(made):
            size = 0.2 * math.sqrt(max(part.shape))  # that of AdamW's updates, as a root of their mean square
            part.parameter[part.rows].add_(update, alpha=-group["lr"] * size)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _exchanged(self, made: list[Tensor]) -> Iterable[tuple[_Part, Tensor]]:
        """The updates of all ranks' matrices, where `made` are this one's."""
        if len(self._shares) == 1:
            yield from zip(self._shares[0], made, strict=True)
            return
        for owner, share in enumerate(self._shares):
            if not share:
                continue
            sizes = [math.prod(part.shape) for part in share]
            if owner == self._rank:
                flat = torch.cat([update.flatten() for update in made])
            else:
                flat = torch.empty(sum(sizes), dtype=torch.bfloat16, device=share[0].parameter.device)
            dist.broadcast(flat.view(torch.uint8), owner)  # gloo knows no bfloat16
            for part, update in zip(share, torch.split(flat, sizes), strict=True):
                yield part, update.view(part.shape)

    def _direction(self, part: _Part) -> Tensor:
        """Nesterov's: the gradient on the way to its mean."""
        gradient, momentum = part.parameter.grad, self.state[part.parameter]["momentum_buffer"]
        assert gradient is not None
        return gradient[part.rows].lerp(momentum[part.rows], self._momentum)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        return self.state[parameter]


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with singular values near one, by Newton and Schulz's iteration in bfloat16.

    Where the device has no instructions for it, products are of the same bfloat16 numbers in float32, and rounded: on
    such a CPU torch's own take a hundred times as long.

    Args:
        matrices: (N, rows, columns), of any size.

    Returns:
        (N, rows, columns), bfloat16. Singular values lie in about 0.7 to 1.2, those that were near zero below.
    """
    a, b, c = _COEFFICIENTS
    wide = torch.Tensor.bfloat16 if has_bfloat16(matrices.device) else torch.Tensor.float
    x = matrices.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST)
    for _ in range(_ITERATIONS):
        y = wide(x)
        square = wide((y @ y.mT).bfloat16())
        inner = wide(torch.baddbmm(square, square, square, beta=b, alpha=c).bfloat16())
        x = torch.baddbmm(y, inner, y, beta=a).bfloat16()
    return x.mT if tall else x


def _parts(parameter: Tensor, sizes: Sequence[int] | None) -> list[_Part]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))] if sizes else [len(parameter)]
    return [_Part(parameter, slice(end - size, end)) for size, end in zip(sizes or ends, ends, strict=True)]


def _shared_out(parts: list[_Part], world_size: int) -> list[list[_Part]]:
    """Each rank's, those of one shape together; the most costly first go to whoever has the least to do so far."""
    shares: list[list[_Part]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for part in sorted(parts, key=lambda each: -each.cost):
        least = loads.index(min(loads))
        shares[least].append(part)
        loads[least] += part.cost
    return [sorted(share, key=lambda part: part.shape) for share in shares]
