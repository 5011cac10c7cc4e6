"""The training loop: what every rank does, from the first step to the last checkpoint."""

from __future__ import annotations

import gc
import logging
import math
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from gptpipe import storage
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.loader import TrainLoader, evaluation_batches
from gptpipe.dataset.locate import documents_at
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.launch.job import METRICS, Job, Outcome
from gptpipe.launch.metrics import MetricsFile, memory_megabytes
from gptpipe.launch.stop import StopRequest
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import pick_device
from gptpipe.tokenizer import Tokenizer
from gptpipe.train import checkpointing, runtime
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.distributed import Ranks
from gptpipe.train.flops import peak_flops
from gptpipe.train.optimizer import make_optimizers
from gptpipe.train.prefetch import DeviceBatches
from gptpipe.train.saver import HostCopies, Saver
from gptpipe.train.state import TrainState
from gptpipe.train.step import Stepper, StepResult
from gptpipe.weights.checkpoint import newest_checkpoint, open_checkpoint, step_name
from gptpipe.wording import counted

log = logging.getLogger(__name__)
_NAMED = 5  # documents of a bad batch


def train(job: Job, stop: StopRequest) -> Outcome:
    """Train until the last step, or until asked to stop; every rank returns the same outcome.

    Raises:
        UserError: the dataset, the weights or the checkpoint cannot be used, or memory does not suffice.
    """
    config = job.train
    ranks = Ranks.join(pick_device(config.device))
    gc.disable()  # a collection in the middle of a step holds up every rank
    try:
        return _Training(job, ranks, stop).run()
    except torch.OutOfMemoryError as error:
        raise runtime.out_of_memory(error) from error
    finally:
        gc.enable()
        ranks.leave()


class _Training:
    """One rank's training: the objects that live through it."""

    def __init__(self, job: Job, ranks: Ranks, stop: StopRequest) -> None:
        config = job.train
        self.job, self.ranks, self.stop, self.config = job, ranks, stop, config
        self.state = TrainState()
        resumed = open_checkpoint(job.resume) if job.resume else None
        if resumed is not None:
            checkpointing.check_same_result(job, resumed)
            self.state = checkpointing.read_state(resumed)
        self.precision = runtime.settle(config, ranks, self.state)
        runtime.check_memory(config, job.model, ranks, self.precision.name)
        dataset = open_dataset(job.dataset)
        self.tokenizer: Tokenizer = dataset.load_tokenizer()
        self.byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths)
        cache = TokenCache(job.cache, job.cache_bytes)
        held_out = bool(dataset.total("shards", "validation"))
        self.training = TokenStream(dataset, "train", cache)
        self.validation = TokenStream(dataset, "validation", cache) if held_out else None
        self.loader = TrainLoader(
            self.training,
            context_length=job.model.context_length,
            config=config,
            rank=ranks.rank,
            world_size=ranks.world_size,
            local_rank=ranks.local_rank,
            local_world_size=ranks.local_world_size,
        )
        self.loader.seek(self.state.samples_seen)
        self.batches = DeviceBatches(self.loader, ranks.device)
        self.drawn = np.zeros(len(self.loader.order.names))
        # this rank's nats and targets since the state was last told of them
        self.interval = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        self.memory_before = memory_megabytes() if ranks.device.type == "cpu" else 0.0
        self.model: GPT = checkpointing.initial_model(job, resumed).to(ranks.device)
        self.model.recompute = config.activation_checkpointing
        self.optimizers = make_optimizers(self.model, config)
        if resumed is not None:
            checkpointing.restore_optimizers(resumed, self.model, self.optimizers)
        self.model.train()
        self.wrapped = self._wrap()
        self.stepper = Stepper(self.wrapped, self.model, self.optimizers, config, ranks, self.precision, self.state)
        self.peak = peak_flops(ranks.device, self.precision.dtype)
        self.tokens_a_step = config.batch_size * job.model.context_length
        self.metrics = MetricsFile(job.folder / METRICS) if ranks.is_first else None
        self.saved_step = self.state.step if job.resume else -1
        self.saver, self.copies = Saver(), HostCopies()
        self.seconds_saving = 0.0
        self.said_memory = False

    def _wrap(self) -> nn.Module:
        """Blocks compiled where that is wanted, as many windows at once as fit, and DDP around it."""
        state, model, ranks = self.state, self.job.model, self.ranks
        trial = partial(runtime.run_trial, precision=self.precision, model=model, ranks=ranks)
        windows = 1 if self.config.micro_batch == "auto" else self.config.micro_batch
        runtime.compile_blocks(
            self.model, self.config, state, lambda: trial(self.model, windows=state.micro_batch or windows), ranks
        )
        state.micro_batch = runtime.choose_micro_batch(
            self.config, model, ranks, state, lambda windows: trial(self.model, windows=windows)
        )
        example = torch.zeros((1, min(8, model.context_length)), dtype=torch.int64, device=ranks.device)
        with self.precision.autocast():
            return ranks.wrap(self.model, (example, example))

    def run(self) -> Outcome:
        state, config = self.state, self.config
        self._say_what_starts()
        began = time.perf_counter()
        reason = ""
        window_seconds, window_tokens, earlier_seconds = 0.0, 0, state.training_seconds
        while state.step < config.steps:
            if self.ranks.any(self.stop.asked()):
                reason = self.stop.reason or "another rank was asked to stop"
                break
            step_began = time.perf_counter()
            done = self._step()
            last = state.step == config.steps
            logged = state.step % config.log_every == 0 or last or state.step == 1
            line: dict[str, float] = {}
            if logged:
                self.stepper.settle()
                self._heed_bad_steps()
            window_seconds += time.perf_counter() - step_began
            window_tokens += done.tokens
            state.training_seconds = earlier_seconds + time.perf_counter() - began
            if logged:
                line |= self._measure(done, window_seconds, window_tokens)
                window_seconds, window_tokens = 0.0, 0
            saving = last or bool(config.checkpoint_every and state.step % config.checkpoint_every == 0)
            if self.validation and (last or (config.validate_every and state.step % config.validate_every == 0)):
                line |= self._validate(saving)
            if line and self.metrics:
                self.metrics.write(state.step, state.tokens_seen, line)
            if saving:
                window_seconds += self._save()
            if saving or "validation/loss" in line:
                gc.collect()
        self.stepper.settle()
        if reason and state.step and self.saved_step != state.step:
            self._save()
        self.saver.wait()
        if self.saver.failed is not None:
            raise self.saver.failed
        return self._outcome("preempted" if reason else "finished", reason)

    def _say_what_starts(self) -> None:
        state, model = self.state, self.job.model
        if not self.ranks.is_first:
            return
        log.info(
            "training %s: %d parameters, %d steps of %d tokens, %s x %s, micro-batch %d, %s on %s%s",
            f"going on from step {state.step}" if self.job.resume else "from the first step",
            self.model.count_parameters(),
            self.config.steps,
            self.tokens_a_step,
            counted(self.ranks.world_size, "rank"),
            counted(state.threads, "thread"),
            state.micro_batch,
            state.precision,
            self.ranks.device.type,
            ", compiled" if state.compiled else "",
        )
        budget = MemoryBudget.of(
            model, self.config, state.micro_batch, state.precision, self.ranks.device.type, self.ranks.world_size
        )
        beside = f", beside {self.memory_before / 1e3:.2f} GB of the process" if self.memory_before else ""
        log.info("memory per rank: %s%s", budget.describe(), beside)

    def _step(self) -> StepResult:
        """One optimizer step over the next samples."""
        state = self.state
        batch, seen = self.batches.next()
        self.drawn += batch.corpora
        done = self.stepper.take(batch)
        # float32 values of like size sum up in float64 without rounding: the order, and a stop between, change nothing
        nats = done.loss.float()
        sums = torch.stack((nats, torch.full_like(nats, done.tokens / self.ranks.world_size)))
        self.interval += sums.where(nats.isfinite(), 0.0)
        state.samples_seen = seen
        if done.verdict == "spike":
            self._heed_spike(done)
        return done

    def _heed_spike(self, done: StepResult) -> None:
        """Say what happened; with `rollback` take weights and moments of the last checkpoint. All ranks agree."""
        action, step = self.config.spike_action, self.state.step
        said = {"warn": "taken all the same", "skip": "not taken", "rollback": "not taken"}[action]
        if action == "rollback":
            self.saver.wait()
            self.ranks.any(False)  # until rank 0 has written what it was writing
            found = newest_checkpoint(self.job.training)
            if found is None:
                said = "not taken; there is no checkpoint yet to go back to"
            else:
                checkpointing.roll_back(self.job, found, self.model, self.optimizers)
                self.state.spike_window.clear()
                said = f"back to the weights of step {found.step}"
        if self.ranks.is_first:
            log.warning("step %d: the loss is %.1f standard deviations above the last ones, %s", step, done.score, said)

    def _heed_bad_steps(self) -> None:
        """End a training whose gradients stay not finite.

        Raises:
            UserError: it names the documents in the last batch.
        """
        state, config = self.state, self.config
        if not state.bad_in_a_row:
            return
        if self.ranks.is_first:
            bad = counted(state.bad_in_a_row, "step")
            log.warning("step %d: the gradient is not finite, not taken (%s in a row)", state.step, bad)
        if state.bad_in_a_row < config.stop_after_bad_steps:
            return
        self.saver.wait()
        samples = np.arange(state.samples_seen - config.batch_size, state.samples_seen)
        starts, _ = self.loader.order.places(samples)
        names = documents_at(self.training, starts)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        newest = newest_checkpoint(self.job.training)
        kept = f"step {newest.step} is kept" if newest else "nothing was saved yet"
        raise UserError(
            f"the gradient was not finite in {counted(state.bad_in_a_row, 'step')} in a row; {kept}; the last batch "
            f"held {', '.join(names[:_NAMED])}{more}",
            where=f"step {state.step}",
            hint="lower train.learning_rate, or look at these documents",
        )

    def _measure(self, done: StepResult, seconds: float, tokens: int) -> dict[str, float]:
        """The numbers of a logged step; means are over all ranks. `tokens` were trained on in `seconds`.

        The loss is the mean over all targets since the last logged step, those of steps whose loss was not finite left
        out. `done` is the last step.
        """
        spent, waited, memory, saving, *drawn = self._gather_loss(
            seconds, self.loader.seconds_waited, memory_megabytes(), self.seconds_saving, *self.drawn
        )
        state, world = self.state, self.ranks.world_size
        self.loader.seconds_waited = self.seconds_saving = 0.0
        self.drawn[:] = 0
        mean = state.interval_nats / state.interval_tokens if state.interval_tokens else math.nan
        state.train_loss = mean if math.isfinite(mean) else None
        state.interval_nats, state.interval_tokens = 0.0, 0
        speed = tokens / (spent / world)
        names = self.loader.order.names
        shares = {f"data/{name}": n / sum(drawn) for name, n in zip(names, drawn, strict=True)}
        if not self.said_memory:
            self.said_memory = True
            if self.ranks.is_first:
                log.info("memory per rank: %.2f GB at most so far", memory / world / 1e3)
        return {
            **(shares if len(names) > 1 else {}),
            "train/loss": mean,
            "train/learning_rate": done.learning_rate,
            "train/grad_norm": float(done.grad_norm),
            "train/tokens_per_second": speed,
            "train/tokens_per_second_per_device": speed / world,
            "train/mfu": speed * self.model.flops_per_token() / (self.peak * world),
            "train/data_wait": waited / spent,
            "train/checkpoint_stall": saving / spent,
            "train/memory_mb": memory / world,
            "train/skipped_steps": state.skipped_steps,
            "train/active_seconds": state.training_seconds,
            "train/device_hours": state.training_seconds * world / 3600,
            "train/flops": float(self.model.flops_per_token()) * state.tokens_seen,
        }

    def _gather_loss(self, *values: float) -> list[float]:
        """Move what all ranks lost since the last logged step into the state, which is saved; sums up `values` too."""
        nats, tokens, *sums = self.ranks.sum(*self.interval.tolist(), *values)
        self.state.interval_nats += nats
        self.state.interval_tokens += round(tokens)
        self.interval.zero_()
        return sums

    def _validate(self, saving: bool) -> dict[str, float]:
        """Loss over validation tokens, on all ranks, weighted by tokens. Only a step that is saved can be the best."""
        assert self.validation is not None
        state = self.state
        state.validation_loss, bits = self._score(self.validation)
        if saving and (state.best_loss is None or state.validation_loss < state.best_loss):
            state.best_loss, state.best_step = state.validation_loss, state.step
        found = {
            "validation/loss": state.validation_loss,
            "validation/perplexity": math.exp(min(state.validation_loss, 700.0)),
            "validation/bits_per_byte": bits,
        }
        if self.config.validate_train:
            found["validation/train_loss"], _ = self._score(self.training)
        return found

    def _score(self, stream: TokenStream) -> tuple[float, float]:
        """Nats a token and bits per byte over the first windows of a split, or over windows spread over it."""
        config = self.config
        batches = evaluation_batches(
            stream,
            self.job.model.context_length,
            max(1, min(self.state.micro_batch, 16)),
            config.validate_tokens,
            self.ranks.rank,
            self.ranks.world_size,
        )
        self.model.eval()
        nats = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        tokens = size = 0
        with torch.no_grad(), self.precision.autocast():
            for inputs, targets in batches:
                nats += self.model(inputs.to(self.ranks.device), targets.to(self.ranks.device))
                tokens += targets.numel()
                size += int(self.byte_lengths[targets].sum())
        self.model.train()
        total, count, length = self.ranks.sum(nats.item(), tokens, size)
        return total / count, total / math.log(2) / length

    def _save(self) -> float:
        """Rank 0 copies the checkpoint's content and has it written in the background; the seconds that took here."""
        self.saved_step = self.state.step
        self._gather_loss()
        if self.metrics is None:
            return 0.0
        began = time.perf_counter()
        self.saver.wait()
        taken = checkpointing.snapshot(self.job, self.model, self.optimizers, self.state, self.tokenizer, self.copies)
        work = partial(checkpointing.write, self.job, taken, self.metrics.contents())
        self.saver.start(work, f"checkpoint {storage.join(self.job.training, step_name(self.state.step))}")
        spent = time.perf_counter() - began
        self.seconds_saving += spent
        return spent

    def _outcome(self, status: str, reason: str) -> Outcome:
        state = self.state
        if state.best_step and open_checkpoint(storage.join(self.job.training, step_name(state.best_step))) is None:
            state.best_step = None  # it could not be saved
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
