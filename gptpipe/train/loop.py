"""The training loop: what every rank does, step by step.

Loss and gradients are sums over a step's target tokens divided by their global number, so that accumulation and
world size do not change the result. Dropout is seeded from (seed, step, micro-step, rank), so that no generator
state is carried from one start to the next.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gptpipe import storage
from gptpipe.checkpoint import open_checkpoint, step_name
from gptpipe.config import TrainConfig
from gptpipe.data.cache import TokenCache
from gptpipe.data.dataset import open_dataset
from gptpipe.data.loader import TrainLoader, evaluation_batches
from gptpipe.data.tokens import TokenStream
from gptpipe.model import GPT
from gptpipe.settings import settings
from gptpipe.tokenizer import Tokenizer
from gptpipe.train import resume
from gptpipe.train.job import METRICS, Job, Outcome
from gptpipe.train.metrics import MetricsFile, memory_megabytes
from gptpipe.train.optimizer import learning_rate, make_optimizer
from gptpipe.train.peak import peak_flops
from gptpipe.train.ranks import Ranks, without_sync
from gptpipe.train.resume import TrainState
from gptpipe.train.stop import StopRequest
from gptpipe.wording import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The autocast of the forward pass; weights, gradients and moments are float32 whatever it is."""

    name: str
    device: str

    @classmethod
    def choose(cls, wanted: str, device: torch.device) -> Precision:
        if wanted == "auto":
            wanted = "bfloat16" if has_bfloat16(device) else "float32"
        return cls(wanted, device.type)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.name == "bfloat16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def train(job: Job, stop: StopRequest) -> Outcome:
    """Train until the last step, or until asked to stop; every rank returns the same outcome.

    Raises:
        UserError: the dataset, the weights or the checkpoint cannot be used.
    """
    config = job.train
    ranks = Ranks.join(pick_device(config.device))
    try:
        return _Training(job, ranks, stop).run()
    finally:
        ranks.leave()


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        loss: this rank's summed loss, in nats.
        tokens: targets of the global batch.
        grad_norm: of the whole gradient, before clipping.
    """

    loss: Tensor
    tokens: int
    grad_norm: Tensor
    learning_rate: float


class _Training:
    """One rank's training: the objects that live through it."""

    def __init__(self, job: Job, ranks: Ranks, stop: StopRequest) -> None:
        config = job.train
        self.job, self.ranks, self.stop, self.config = job, ranks, stop, config
        self.state = TrainState()
        if job.resume and (found := open_checkpoint(job.resume)) is not None:
            self.state = resume.read_state(found)
        self._settle_operation()
        if config.deterministic and ranks.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        dataset = open_dataset(job.dataset)
        self.tokenizer: Tokenizer = dataset.load_tokenizer()
        self.byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths)
        cache = TokenCache(job.cache, settings().cache_bytes)
        held_out = bool(dataset.total("shards", "validation"))
        self.validation = TokenStream(dataset, "validation", cache) if held_out else None
        self.loader = TrainLoader(
            TokenStream(dataset, "train", cache),
            context_length=job.model.context_length,
            config=config,
            rank=ranks.rank,
            world_size=ranks.world_size,
            local_rank=ranks.local_rank,
            local_world_size=ranks.local_world_size,
        )
        self.loader.seek(self.state.samples_seen)
        self.drawn = np.zeros(len(self.loader.order.names))
        self.model: GPT = resume.initial_model(job).to(ranks.device)
        self.optimizer = make_optimizer(self.model, config)
        if job.resume:
            resume.restore_optimizer(job, self.model, self.optimizer)
        self.model.train()
        example = torch.zeros((1, min(8, job.model.context_length)), dtype=torch.int64, device=ranks.device)
        with self.precision.autocast():
            self.wrapped: nn.Module = ranks.wrap(self.model, (example, example))
        self.peak = peak_flops(ranks.device, self.precision.dtype)
        self.tokens_a_step = config.batch_size * job.model.context_length
        self.metrics = MetricsFile(job.folder / METRICS) if ranks.is_first else None
        self.saved_step = self.state.step if job.resume else -1

    def _settle_operation(self) -> None:
        """Threads, micro-batch and precision: as before after a stop on as many ranks, else chosen here."""
        state, config, ranks = self.state, self.config, self.ranks
        again = state.world_size == ranks.world_size
        if again:
            threads, micro = state.threads, state.micro_batch
        else:
            threads = config.threads or max(1, (os.cpu_count() or 1) // ranks.local_world_size)
            micro = config.micro_batch or math.ceil(config.batch_size / ranks.world_size)
        torch.set_num_threads(threads)
        self.precision = Precision.choose(state.precision or config.precision, ranks.device)
        state.threads, state.micro_batch = threads, micro
        state.precision, state.world_size = self.precision.name, ranks.world_size

    def run(self) -> Outcome:
        began = time.perf_counter()
        state, config = self.state, self.config
        if self.ranks.is_first:
            start = f"going on from step {state.step}" if self.job.resume else "from the beginning"
            log.info(
                "training %s: %d parameters, %d steps of %d tokens, %s x %s, %s on %s",
                start,
                self.model.count_parameters(),
                config.steps,
                self.tokens_a_step,
                counted(self.ranks.world_size, "rank"),
                counted(state.threads, "thread"),
                state.precision,
                self.ranks.device.type,
            )
        reason = ""
        window_seconds, window_tokens, earlier_seconds = 0.0, 0, state.training_seconds
        while state.step < config.steps:
            if self.ranks.any(self.stop.asked()):
                reason = self.stop.reason or "another rank was asked to stop"
                break
            step_began = time.perf_counter()
            done = self._step()
            window_seconds += time.perf_counter() - step_began
            window_tokens += done.tokens
            state.training_seconds = earlier_seconds + time.perf_counter() - began
            last = state.step == config.steps
            line: dict[str, float] = {}
            if state.step % config.log_every == 0 or last or state.step == 1:
                line |= self._measure(done, window_seconds, window_tokens)
                window_seconds, window_tokens = 0.0, 0
            saving = last or bool(config.checkpoint_every and state.step % config.checkpoint_every == 0)
            if self.validation and (last or (config.validate_every and state.step % config.validate_every == 0)):
                line |= self._validate(saving)
            if line and self.metrics:
                self.metrics.write(state.step, state.tokens_seen, line)
            if saving:
                self._save()
        if reason and state.step and self.saved_step != state.step:
            self._save()
        return self._outcome("preempted" if reason else "finished", reason)

    def _step(self) -> StepResult:
        """One optimizer step."""
        config, state = self.config, self.state
        rate = learning_rate(state.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, targets, tokens, drawn = self.loader.next_batch()
        self.drawn += drawn
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        # DDP takes the mean over ranks of what each hands in; the loss is the mean over all target tokens
        scale = self.ranks.world_size / tokens
        starts = range(0, len(inputs), state.micro_batch)
        for micro, start in enumerate(starts):
            part = slice(start, start + state.micro_batch)
            x = inputs[part].to(self.ranks.device, non_blocking=True)
            y = targets[part].to(self.ranks.device, non_blocking=True)
            if self.job.model.dropout:
                torch.manual_seed(dropout_seed(config.seed, state.step, micro, self.ranks.rank))
            with without_sync(self.wrapped, skip=start != starts[-1]):
                with self.precision.autocast():
                    loss = self.wrapped(x, y)
                (loss * scale).backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.samples_seen = self.loader.samples_seen
        state.tokens_seen += tokens
        return StepResult(total, tokens, norm, rate)

    def _measure(self, done: StepResult, seconds: float, tokens: int) -> dict[str, float]:
        """The numbers of a logged step; means are over all ranks. `tokens` were trained on in `seconds`."""
        total, slowest, waited, memory, *drawn = self.ranks.sum(
            done.loss.item(), seconds, self.loader.seconds_waited, memory_megabytes(), *self.drawn
        )
        world = self.ranks.world_size
        self.loader.seconds_waited = 0.0
        self.drawn[:] = 0
        self.state.train_loss = total / done.tokens
        speed = tokens / (slowest / world)
        names = self.loader.order.names
        shares = {f"data/{name}": n / sum(drawn) for name, n in zip(names, drawn, strict=True)}
        return {
            **(shares if len(names) > 1 else {}),
            "train/loss": self.state.train_loss,
            "train/learning_rate": done.learning_rate,
            "train/grad_norm": float(done.grad_norm),
            "train/tokens_per_second": speed,
            "train/mfu": speed * self.model.flops_per_token() / (self.peak * world),
            "train/data_wait": waited / slowest,
            "train/memory_mb": memory / world,
        }

    def _validate(self, saving: bool) -> dict[str, float]:
        """Loss over validation tokens, on all ranks, weighted by tokens. Only a step that is saved can be the best."""
        assert self.validation is not None
        config, state = self.config, self.state
        batches = evaluation_batches(
            self.validation,
            self.job.model.context_length,
            max(1, min(state.micro_batch, 16)),
            config.validate_tokens,
            self.ranks.rank,
            self.ranks.world_size,
        )
        self.model.eval()
        nats = tokens = size = 0.0
        with torch.no_grad(), self.precision.autocast():
            for inputs, targets in batches:
                nats += float(self.model(inputs.to(self.ranks.device), targets.to(self.ranks.device)))
                tokens += targets.numel()
                size += int(self.byte_lengths[targets].sum())
        self.model.train()
        nats, tokens, size = self.ranks.sum(nats, tokens, size)
        state.validation_loss = nats / tokens
        if saving and (state.best_loss is None or state.validation_loss < state.best_loss):
            state.best_loss, state.best_step = state.validation_loss, state.step
        return {
            "validation/loss": state.validation_loss,
            "validation/perplexity": math.exp(min(state.validation_loss, 700.0)),
            "validation/bits_per_byte": nats / math.log(2) / size,
        }

    def _save(self) -> None:
        """Rank 0 writes the checkpoint; the others meet it again at the next step's sums."""
        self.saved_step = self.state.step
        if self.metrics is None:
            return
        began = time.perf_counter()
        written = resume.save(self.job, self.model, self.optimizer, self.state, self.tokenizer)
        storage.write_bytes(storage.join(self.job.training, METRICS), self.metrics.contents())
        log.info("checkpoint %s in %.1f s", written.url, time.perf_counter() - began)

    def _outcome(self, status: str, reason: str) -> Outcome:
        state = self.state
        speed = state.tokens_seen / state.training_seconds if state.training_seconds else None
        return Outcome.model_validate(
            {
                "status": status,
                "reason": reason,
                "step": state.step,
                "tokens": state.tokens_seen,
                "checkpoint": storage.join(self.job.training, step_name(state.step)) if state.step else "",
                "best_step": state.best_step,
                "train_loss": state.train_loss,
                "validation_loss": state.validation_loss,
                "tokens_per_second": speed,
            }
        )


def dropout_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """The generator's seed of a micro-step: a well-mixed 63-bit number of all four."""
    return int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def count_tokens(config: TrainConfig, context_length: int) -> int:
    """Tokens a training reads in all."""
    return config.steps * config.batch_size * context_length
