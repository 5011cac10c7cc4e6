"""The state of a training that is saved and restored, so that a resumed run ends with the same bits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from gptpipe import checkpoint as checkpoints
from gptpipe.checkpoint import OPTIMIZER, STATE, Checkpoint
from gptpipe.model import GPT
from gptpipe.pretrained import hf_config, hf_tensors, read_weights
from gptpipe.tokenizer import Tokenizer
from gptpipe.train.job import Job
from gptpipe.train.optimizer import load_optimizer, optimizer_tensors


@dataclass
class TrainState:
    """Where a training is. Everything but weights and moments, which are tensors.

    Attributes:
        step: optimizer steps done.
        samples_seen: windows read by all ranks: the whole state of the loader.
        best: lowest validation loss so far and its step.
        threads, micro_batch, precision, world_size: what the sums depend on; used again after a stop on as many
            ranks, so that they come out bit for bit.
    """

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    skipped_steps: int = 0
    spike_window: list[float] = field(default_factory=list)
    training_seconds: float = 0.0
    threads: int = 0
    micro_batch: int = 0
    precision: str = ""
    world_size: int = 0
    bucket_layout: str = "final before the first step"


def read_state(checkpoint: Checkpoint) -> TrainState:
    known = TrainState.__dataclass_fields__
    return TrainState(**{key: value for key, value in checkpoint.json(STATE).items() if key in known})


def initial_model(job: Job) -> GPT:
    """The model a training starts with: a checkpoint's weights, given ones, or random ones after the seed."""
    if job.resume or job.init:
        return read_weights(job.resume or job.init).build(job.model)
    torch.manual_seed(job.train.seed)
    return GPT(job.model)


def restore_optimizer(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    found = checkpoints.open_checkpoint(job.resume)
    assert found is not None  # the launcher found it
    load_optimizer(model, optimizer, found.tensors(OPTIMIZER), found.url)


def save(job: Job, model: GPT, optimizer: torch.optim.Optimizer, state: TrainState, tokenizer: Tokenizer) -> Checkpoint:
    """Write the checkpoint of this step and remove those that are no longer kept."""
    facts: dict[str, Any] = {
        **asdict(state),
        "id": job.id,
        "dataset": job.dataset.rsplit("/", 1)[-1],
        "schedule": {"kind": "cosine", "steps": job.train.steps, "warmup_steps": job.train.warmup_steps},
        "configuration": {
            "model": job.model.model_dump(mode="json"),
            "train": job.train.model_dump(mode="json"),
        },
        "torch": torch.__version__,
    }
    written = checkpoints.write_checkpoint(
        job.training,
        state.step,
        model=hf_tensors(model),
        config=hf_config(job.model, tokenizer.name, tokenizer.end_of_text),
        optimizer=optimizer_tensors(model, optimizer),
        state=facts,
    )
    checkpoints.prune(job.training, job.train.keep_checkpoints, state.best_step)
    return written
