"""Everything that one rank's training is made of, from the job: new, or as a checkpoint left it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.loader import TrainLoader
from gptpipe.dataset.stream import TokenStream
from gptpipe.launch.job import Job
from gptpipe.launch.metrics import memory_megabytes
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import Precision
from gptpipe.tokenizer import Tokenizer
from gptpipe.train import checkpointing, runtime
from gptpipe.train.compiler import compile_blocks, uncompiled
from gptpipe.train.distributed import Ranks
from gptpipe.train.micro_batch import MicroBatch, run_trial
from gptpipe.train.optimizer import Optimizer, make_optimizers
from gptpipe.train.phases import Phases
from gptpipe.train.prefetch import DeviceBatches
from gptpipe.train.saver import HostCopies
from gptpipe.train.state import TrainState
from gptpipe.train.step import Stepper
from gptpipe.weights.checkpoint import open_checkpoint


@dataclass
class Parts:
    """The objects that live through a training.

    Attributes:
        training, validation: the tokens of the two splits; the second is None where nothing was held out.
        loader: this rank's samples in their order. batches: the same on the device, read ahead.
        copies: where rank 0 copies what a checkpoint holds.
        memory_before: megabytes of the process before there was a model; 0 on a GPU, which it is not in.
    """

    job: Job
    ranks: Ranks
    state: TrainState
    precision: Precision
    tokenizer: Tokenizer
    training: TokenStream
    validation: TokenStream | None
    loader: TrainLoader
    batches: DeviceBatches
    model: GPT
    optimizers: list[Optimizer]
    stepper: Stepper
    copies: HostCopies
    memory_before: float


def set_up(job: Job, ranks: Ranks, phases: Phases) -> Parts:
    """Make them all, on this rank's device.

    Raises:
        UserError: the dataset, the weights or the checkpoint cannot be used, or memory does not suffice.
    """
    config, state = job.train, TrainState()
    resumed = open_checkpoint(job.resume) if job.resume else None
    if resumed is not None:
        checkpointing.check_same_result(job, resumed)
        state = checkpointing.read_state(resumed)
    precision = runtime.settle(config, ranks, state)
    runtime.check_memory(config, job.model, ranks, precision.name)
    dataset = open_dataset(job.dataset)
    cache = TokenCache(job.cache, job.cache_bytes)
    training = TokenStream(dataset, "train", cache)
    validation = TokenStream(dataset, "validation", cache) if dataset.total("shards", "validation") else None
    loader = TrainLoader(
        training,
        context_length=job.model.context_length,
        config=config,
        rank=ranks.rank,
        world_size=ranks.world_size,
        local_rank=ranks.local_rank,
        local_world_size=ranks.local_world_size,
        news=job.read_news(),
    )
    loader.seek(state.samples_seen)
    batches = DeviceBatches(loader, ranks.device)
    phases.mark("data")
    memory_before = memory_megabytes() if ranks.device.type == "cpu" else 0.0
    model = checkpointing.initial_model(job, resumed).to(ranks.device)
    model.recompute = config.activation_checkpointing
    optimizers = make_optimizers(model, config, ranks.rank, ranks.world_size)
    if resumed is not None:
        checkpointing.restore_optimizers(resumed, model, optimizers)
    model.train()
    phases.mark("model")
    wrapped = _wrapped(model, job, ranks, precision, state, phases)
    copies = HostCopies(ranks.device)
    if ranks.is_first and ranks.device.type == "cuda":
        checkpointing.reserve(model, optimizers, copies)
        phases.mark("pinned memory")
    return Parts(
        job,
        ranks,
        state,
        precision,
        dataset.load_tokenizer(),
        training,
        validation,
        loader,
        batches,
        model,
        optimizers,
        Stepper(wrapped, model, optimizers, config, ranks, precision, state, before_update=copies.hold_update),
        copies,
        memory_before,
    )


def _wrapped(model: GPT, job: Job, ranks: Ranks, precision: Precision, state: TrainState, phases: Phases) -> nn.Module:
    """The model with compiled blocks where that is asked for, as many windows at once as fit, and DDP around it."""
    config = job.train
    trial = partial(run_trial, model, precision, model=job.model, ranks=ranks)
    compile_blocks(model, config, ranks, state)
    chooser = MicroBatch(config, job.model, ranks, state, lambda windows: trial(windows=windows))
    size = chooser.choose()
    phases.mark("memory")
    what = "compiling" if state.compiled else "memory"  # it may be done without, and has taken its time all the same
    state.micro_batch = chooser.confirm(model, size)
    phases.mark(what)
    example = torch.zeros((1, min(8, job.model.context_length)), dtype=torch.int64, device=ranks.device)
    with precision.autocast(), uncompiled(state):
        return ranks.wrap(model, (example, example))
