"""AdamW by torch's own kernel, without the class around it, which loads torch's compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused: the same numbers, bit for bit, as `torch.optim.AdamW(fused=True)`.

    That class imports torch's compiler when it is made and whenever it takes a step: a second of each rank's start,
    also where nothing is compiled. The function that does the arithmetic does not.

    Args:
        groups: each with `params` and `weight_decay`. learning_rate: of all of them, until `param_groups` says another.

    Attributes:
        param_groups: as torch's optimizers have them, with `lr`.
        state: of each parameter that has taken a step: `step` (a float32 counter), `exp_avg`, `exp_avg_sq`.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [{**group, "lr": learning_rate} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._betas, self._epsilon = betas, epsilon

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """Take a step with the gradients there are.

        Args:
            skip: one float32 on the parameters' device; 1 leaves weights and state as they are. Nothing waits for it.
        """
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self._state_of(parameter) for parameter in parameters]
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=skip,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self._epsilon,
                maximize=False,
            )

    def allocate(self) -> None:
        """Take the moments' memory now; otherwise the first step does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]
