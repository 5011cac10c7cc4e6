"""AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gptpipe.config import TrainConfig
from gptpipe.errors import UserError


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused: matrices decay, biases and layer norms do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step (the first is 0): linear warm-up, then a cosine down to its last share."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.min_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, keyed `<parameter>/<state>`, in our own layout, on the CPU."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value.detach().cpu()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        UserError: a parameter's state is missing or has another shape.
    """
    for name, parameter in model.named_parameters():
        state = {key.rsplit("/", 1)[1]: value for key, value in tensors.items() if key.rsplit("/", 1)[0] == name}
        moments = [state.get("exp_avg"), state.get("exp_avg_sq")]
        if "step" not in state or any(m is None or m.shape != parameter.shape for m in moments):
            raise UserError(
                f"the optimizer's state does not fit {name}",
                where=where,
                hint="resume with the configuration that wrote it, or start again with --force",
            )
        optimizer.state[parameter] = {
            # torch keeps the counter in float32, on the parameter's device when the kernel is fused
            key: value.to(parameter.device, torch.float32 if key == "step" else parameter.dtype).clone()
            for key, value in state.items()
        }
