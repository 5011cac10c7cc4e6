"""What a rank says of its training: lines in the log, and the numbers of the steps that are logged."""

from __future__ import annotations

import logging
import math
import time

import numpy as np
import torch

from gptpipe.dataset.loader import TrainBatch
from gptpipe.launch.job import METRICS
from gptpipe.launch.metrics import MetricsFile, memory_megabytes
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.energy import EnergyMeter
from gptpipe.train.flops import peak_flops
from gptpipe.train.setup import Parts
from gptpipe.train.step import StepResult
from gptpipe.wording import counted

log = logging.getLogger(__name__)


class Reporter:
    """Adds up steps, and makes numbers of them that are means over all ranks. Rank 0 writes them.

    Attributes:
        file: metrics.jsonl, on rank 0; None on the others.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, device = parts, parts.ranks.device
        self._drawn = np.zeros(len(parts.loader.order.names))
        # this rank's nats and targets since the state was last told of them
        self._interval = torch.zeros(2, dtype=torch.float64, device=device)
        self._peak = peak_flops(device, parts.precision.dtype)
        self._window_seconds, self._window_tokens = 0.0, 0
        self._began, self._earlier_seconds = time.perf_counter(), parts.state.training_seconds
        self._said_memory = False
        self.file = MetricsFile(parts.job.folder / METRICS) if parts.ranks.is_first else None
        self._seconds_saving = 0.0
        self._energy = EnergyMeter(parts.ranks)

    def begin(self) -> None:
        """Say what starts; training's time is counted from now on."""
        parts = self._parts
        state, model, config, ranks = parts.state, parts.job.model, parts.job.train, parts.ranks
        if self.file is not None:
            log.info(
                "training %s: %d parameters, %d steps of %d tokens, %s x %s, micro-batch %d, %s on %s%s",
                f"going on from step {state.step}" if parts.job.resume else "from the first step",
                parts.model.count_parameters(),
                config.steps,
                config.batch_size * model.context_length,
                counted(ranks.world_size, "rank"),
                counted(state.threads, "thread"),
                state.micro_batch,
                state.precision,
                ranks.device.type,
                ", compiled" if state.compiled else "",
            )
            budget = MemoryBudget.of(
                model, config, state.micro_batch, state.precision, ranks.device.type, ranks.world_size
            )
            before = f", beside {parts.memory_before / 1e3:.2f} GB of the process" if parts.memory_before else ""
            log.info("memory per rank: %s%s", budget.describe(), before)
        self._began, self._earlier_seconds = time.perf_counter(), state.training_seconds
        self._energy.since_last()  # what it took to get ready is not training's
        if not state.step:
            state.energy_joules = 0.0

    def add(self, batch: TrainBatch, done: StepResult) -> None:
        """A step that was done."""
        self._drawn += batch.corpora
        # float32 values of like size sum up in float64 without rounding: the order, and a stop between, change nothing
        nats = done.loss.float()
        sums = torch.stack((nats, torch.full_like(nats, done.tokens / self._parts.ranks.world_size)))
        self._interval += sums.where(nats.isfinite(), 0.0)

    def add_step(self, seconds: float, tokens: int) -> None:
        """What a step took, and the tokens trained on in it; the state's time is up to here."""
        self._window_seconds += seconds
        self._window_tokens += tokens
        self._parts.state.training_seconds = self._earlier_seconds + time.perf_counter() - self._began

    def add_saving(self, seconds: float) -> None:
        """How long a checkpoint has held training up."""
        self._window_seconds += seconds
        self._seconds_saving += seconds

    def measure(self, done: StepResult) -> dict[str, float]:
        """The numbers of a logged step, which is `done`; means are over all ranks.

        The loss is the mean over all targets since the last logged step, those of steps whose loss was not finite left
        out.
        """
        loader, state, world = self._parts.loader, self._parts.state, self._parts.ranks.world_size
        spent, waited, memory, saving, joules, *drawn = self.share_loss(
            self._window_seconds,
            loader.seconds_waited,
            memory_megabytes(),
            self._seconds_saving,
            self._energy.since_last(),
            *self._drawn,
        )
        if state.energy_joules is not None:
            state.energy_joules = state.energy_joules + joules if math.isfinite(joules) else None
        speed = self._window_tokens / (spent / world)
        loader.seconds_waited = self._seconds_saving = self._window_seconds = 0.0
        self._window_tokens = 0
        self._drawn[:] = 0
        mean = state.interval_nats / state.interval_tokens if state.interval_tokens else math.nan
        state.train_loss = mean if math.isfinite(mean) else None
        state.interval_nats, state.interval_tokens = 0.0, 0
        names = loader.order.names
        shares = {f"data/{name}": n / sum(drawn) for name, n in zip(names, drawn, strict=True)}
        if not self._said_memory:
            self._said_memory = True
            if self.file is not None:
                log.info("memory per rank: %.2f GB at most so far", memory / world / 1e3)
        flops = self._parts.model.flops_per_token()
        return {
            **(shares if len(names) > 1 else {}),
            "train/loss": mean,
            "train/learning_rate": done.learning_rate,
            "train/grad_norm": float(done.grad_norm),
            "train/tokens_per_second": speed,
            "train/tokens_per_second_per_device": speed / world,
            "train/mfu": speed * flops / (self._peak * world),
            "train/data_wait": waited / spent,
            "train/checkpoint_stall": saving / spent,
            "train/memory_mb": memory / world,
            "train/skipped_steps": state.skipped_steps,
            "train/active_seconds": state.training_seconds,
            "train/device_hours": state.training_seconds * world / 3600,
            **({} if state.energy_joules is None else {"train/energy_wh": state.energy_joules / 3600}),
        }

    def share_loss(self, *values: float) -> list[float]:
        """Move what all ranks lost since the last logged step into the state, which is saved; sums up `values` too."""
        state = self._parts.state
        nats, tokens, *sums = self._parts.ranks.sum(*self._interval.tolist(), *values)
        state.interval_nats += nats
        state.interval_tokens += round(tokens)
        self._interval.zero_()
        return sums

    def write(self, line: dict[str, float]) -> None:
        """Put numbers of the present step into metrics.jsonl, FLOPs so far beside each: a chart may go by them."""
        state = self._parts.state
        if self.file is not None and line:
            flops = float(self._parts.model.flops_per_token()) * state.tokens_seen
            self.file.write(state.step, state.tokens_seen, {**line, "train/flops": flops})
