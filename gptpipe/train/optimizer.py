"""AdamW, or Muon for the hidden matrices with AdamW for the rest; and their state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptpipe.config import TrainConfig
from gptpipe.errors import UserError
from gptpipe.model.gpt import GPT
from gptpipe.train.adamw import AdamW
from gptpipe.train.muon import Muon

_STATES = {"AdamW": ("exp_avg", "exp_avg_sq", "step"), "Muon": ("momentum_buffer",)}


class Optimizer(Protocol):
    """What a step needs of an optimizer; torch's own have it too.

    Attributes:
        param_groups: each with `params`, `weight_decay` and the learning rate, `lr`; with `share`, its is so much of
            the schedule's.
        state: tensors by name, of each parameter that has taken a step.
    """

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]: ...
    def step(self) -> Any: ...
    def zero_grad(self) -> None: ...


def make_optimizers(model: GPT, config: TrainConfig, rank: int = 0, world_size: int = 1) -> list[Optimizer]:
    """AdamW; with `optimizer=muon` the matrices of the blocks go to Muon, whose work the ranks share.

    Biases and norms do not decay unless `decay_vectors` says so.
    """
    hidden = {p for p in model.h.parameters() if p.ndim == 2} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if p not in hidden]
    decaying = [p for p in rest if p.ndim >= 2 or config.decay_vectors]
    still = [p for p in rest if p.ndim < 2 and not config.decay_vectors]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": still, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [
        AdamW(
            [group for group in groups if group["params"]],
            learning_rate=config.learning_rate,
            betas=(config.beta1, config.beta2),
            epsilon=config.epsilon,
        )
    ]
    if hidden:
        optimizers.append(
            Muon(
                [p for p in model.parameters() if p in hidden],
                learning_rate=config.learning_rate,
                share=(config.muon_learning_rate or config.learning_rate) / config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.muon_momentum,
                parts=model.matrices(),
                rank=rank,
                world_size=world_size,
            )
        )
    return optimizers


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state, keyed `<parameter>/<state>`, in our own layout; the tensors themselves, not copies."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value.detach()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizers(model: nn.Module, optimizers: Iterable[Optimizer], tensors: dict[str, Tensor], where: str) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        UserError: a parameter's state is missing or has another shape.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        keys = _STATES[type(optimizer).__name__]
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            name = names[parameter]
            state = {key: tensors.get(f"{name}/{key}") for key in keys}
            if any(v is None or (key != "step" and v.shape != parameter.shape) for key, v in state.items()):
                raise UserError(
                    f"the optimizer's state does not fit {name}",
                    where=where,
                    hint="resume with the configuration that wrote it, or start again with --force",
                )
            optimizer.state[parameter] = {
                # torch keeps the counter in float32, on the parameter's device when the kernel is fused
                key: value.to(parameter.device, torch.float32 if key == "step" else parameter.dtype).clone()
                for key, value in state.items()
                if value is not None
            }
