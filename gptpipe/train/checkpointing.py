"""A training's state into a checkpoint and out of it again, so that a resumed run ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gptpipe import storage
from gptpipe.config import ModelConfig, TrainConfig, field_roles
from gptpipe.errors import UserError
from gptpipe.launch.job import METRICS, Job
from gptpipe.model.gpt import GPT
from gptpipe.tokenizer import Tokenizer
from gptpipe.train.adamw import AdamW
from gptpipe.train.optimizer import Optimizer, load_optimizers, optimizer_tensors
from gptpipe.train.saver import HostCopies
from gptpipe.train.state import TrainState
from gptpipe.weights.checkpoint import OPTIMIZER, STATE, Checkpoint
from gptpipe.weights.commit import prune, write_checkpoint
from gptpipe.weights.find import of_checkpoint, read_weights
from gptpipe.weights.huggingface import hf_config, hf_tensors

_WEIGHTS, _MOMENTS = "weights:", "moments:"


def read_state(checkpoint: Checkpoint) -> TrainState:
    known = TrainState.__dataclass_fields__
    return TrainState(**{key: value for key, value in checkpoint.json(STATE).items() if key in known})


def initial_model(job: Job, resumed: Checkpoint | None) -> GPT:
    """The model a training starts with: a checkpoint's weights, given ones, or random ones after the seed."""
    if resumed is not None or job.init:
        return (of_checkpoint(resumed) if resumed is not None else read_weights(job.init)).build(job.model)
    torch.manual_seed(job.train.seed)
    return GPT(job.model)


def restore_optimizers(checkpoint: Checkpoint, model: nn.Module, optimizers: list[Optimizer]) -> None:
    """Moments out of a checkpoint."""
    load_optimizers(model, optimizers, checkpoint.tensors(OPTIMIZER), checkpoint.url)


def roll_back(job: Job, checkpoint: Checkpoint, model: GPT, optimizers: list[Optimizer]) -> None:
    """Weights and moments of an earlier checkpoint of this training; where it is in its samples stays."""
    mine = model.state_dict()
    for name, value in of_checkpoint(checkpoint).build(job.model).state_dict().items():
        mine[name].copy_(value)
    restore_optimizers(checkpoint, model, optimizers)


def check_same_result(job: Job, checkpoint: Checkpoint) -> None:
    """A UserError that names the fields in which a checkpoint's training differs from this one in its result."""
    saved = checkpoint.json(STATE).get("configuration", {})
    changed = []
    for section, kind in (("model", ModelConfig), ("train", TrainConfig)):
        mine, defaults = (config.model_dump(mode="json") for config in (getattr(job, section), kind()))
        decide = sorted(name for name, role in field_roles(kind).items() if role == "result")
        theirs = {**defaults, **saved.get(section, {})}  # a field that was not there then has its default
        changed += [f"{section}.{name}" for name in decide if mine[name] != theirs[name]]
    if changed:
        raise UserError(
            f"the checkpoint was made with other values of {', '.join(changed)}",
            where=checkpoint.url,
            hint="set them as they were, or start a new training elsewhere",
        )


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's content in host memory, which training does not touch any more.

    Attributes:
        ready: waits until what is on its way from a GPU is there.
    """

    ready: Callable[[], None]
    state: TrainState
    facts: dict[str, Any]
    model: dict[str, Tensor]
    config: dict[str, Any]
    optimizer: dict[str, Tensor]
    tokenizer: Tokenizer


def snapshot(
    job: Job, model: GPT, optimizers: list[Optimizer], state: TrainState, tokenizer: Tokenizer, copies: HostCopies
) -> Snapshot:
    """Copy what a checkpoint of this step holds."""
    facts: dict[str, Any] = {
        **asdict(state),
        "id": job.id,
        "dataset": job.dataset.rsplit("/", 1)[-1],
        "schedule": {"kind": job.train.schedule, "steps": job.train.steps, "warmup_steps": job.train.warmup_steps},
        "configuration": {
            "model": job.model.model_dump(mode="json"),
            "train": job.train.model_dump(mode="json"),
        },
        "torch": torch.__version__,
    }
    copied = copies.take(_named(model, optimizers))
    return Snapshot(
        copied.ready,
        replace(state, spike_window=list(state.spike_window)),
        facts,
        _of_kind(copied.tensors, _WEIGHTS),
        hf_config(job.model, tokenizer.name, tokenizer.end_of_text),
        _of_kind(copied.tensors, _MOMENTS),
        tokenizer,
    )


def reserve(model: GPT, optimizers: list[Optimizer], copies: HostCopies) -> None:
    """Take the memory that checkpoints will be copied to, and the moments' own, before the first step."""
    for optimizer in optimizers:
        if isinstance(optimizer, AdamW):
            optimizer.allocate()
    copies.reserve(_named(model, optimizers))


def _named(model: GPT, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All tensors of a checkpoint; two kinds in one dictionary."""
    kinds = {_WEIGHTS: hf_tensors(model), _MOMENTS: optimizer_tensors(model, optimizers)}
    return {f"{kind}{name}": value for kind, tensors in kinds.items() for name, value in tensors.items()}


def _of_kind(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}


def write(job: Job, taken: Snapshot, metrics: bytes) -> None:
    """Write a snapshot as the checkpoint of its step, and remove those that are no longer kept.

    The metrics go first: a training that goes on from the checkpoint keeps those up to its step, and has no others.
    """
    taken.ready()
    storage.write_bytes(storage.join(job.training, METRICS), metrics)
    write_checkpoint(
        job.training,
        taken.state.step,
        model=taken.model,
        config=taken.config,
        optimizer=taken.optimizer,
        state=taken.facts,
        others=taken.tokenizer.files,
    )
    prune(job.training, job.train.keep_checkpoints, taken.state.best_step)
