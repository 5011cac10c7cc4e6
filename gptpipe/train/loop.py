"""The training loop: what every rank does, from the first step to the last checkpoint."""

from __future__ import annotations

import gc
import logging
import time
from functools import partial

import numpy as np
import torch

from gptpipe import storage
from gptpipe.dataset.locate import documents_at
from gptpipe.errors import UserError
from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.signals import StopRequest
from gptpipe.model.precision import pick_device
from gptpipe.train import checkpointing, runtime
from gptpipe.train.distributed import Ranks
from gptpipe.train.phases import Phases
from gptpipe.train.reporter import Reporter
from gptpipe.train.saver import Saver
from gptpipe.train.setup import Parts, set_up
from gptpipe.train.step import StepResult
from gptpipe.train.validation import validate
from gptpipe.weights.checkpoint import newest_checkpoint, open_checkpoint, step_name
from gptpipe.wording import counted

log = logging.getLogger(__name__)
_NAMED = 5  # documents of a bad batch


def train(job: Job, stop: StopRequest) -> Outcome:
    """Train until the last step, or until asked to stop; every rank returns the same outcome.

    Raises:
        UserError: the dataset, the weights or the checkpoint cannot be used, or memory does not suffice.
    """
    phases = Phases.of(job)
    phases.mark("imports")
    ranks = Ranks.join(pick_device(job.train.device))
    phases.mark("device")
    gc.disable()  # a collection in the middle of a step holds up every rank
    try:
        return Loop(set_up(job, ranks, phases), stop, phases).run()
    except torch.OutOfMemoryError as error:
        raise runtime.out_of_memory(error, ranks.device) from error
    finally:
        gc.enable()
        ranks.leave()


class Loop:
    """Steps, and what is due after each: numbers, validation, a checkpoint.

    Attributes:
        parts: what the training is made of.
    """

    def __init__(self, parts: Parts, stop: StopRequest, phases: Phases) -> None:
        self.parts, self._stop, self._phases = parts, stop, phases
        self._state, self._config, self._ranks = parts.state, parts.job.train, parts.ranks
        self._reporter = Reporter(parts)
        self._saver = Saver()
        self._saved_step = self._state.step if parts.job.resume else -1

    def run(self) -> Outcome:
        """Go on to the last step, or to where all ranks see that one was asked to stop."""
        self._reporter.begin()
        reason, is_first = "", True
        while self._state.step < self._config.steps:
            if self._ranks.any(self._stop.asked()):
                reason = self._stop.reason or "another rank was asked to stop"
                break
            self.step()
            if is_first:
                self._say_start()
                is_first = False
        self.parts.stepper.settle()
        if reason and self._state.step and self._saved_step != self._state.step:
            self._save()
        self._saver.wait()
        if self._saver.failed is not None:
            raise self._saver.failed
        return self._outcome("preempted" if reason else "finished", reason)

    def _say_start(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self._phases.mark("first step")
        if self._ranks.is_first:
            log.info("%s", self._phases.describe())

    def step(self) -> None:
        """One optimizer step over the next samples, and what is due after it."""
        began = time.perf_counter()
        done = self._take()
        state, config = self._state, self._config
        last = state.step == config.steps
        is_logged = last or state.step == 1 or state.step % config.log_every == 0
        is_saved = last or bool(config.checkpoint_every and state.step % config.checkpoint_every == 0)
        is_validated = last or bool(config.validate_every and state.step % config.validate_every == 0)
        if is_logged:
            self.parts.stepper.settle()
            self._heed_bad_steps()
        self._reporter.add_step(time.perf_counter() - began, done.tokens)
        line = self._reporter.measure(done) if is_logged else {}
        if self.parts.validation and is_validated:
            line |= validate(self.parts, self.parts.validation, saving=is_saved)
        self._reporter.write(line)
        if is_saved:
            self._save()
        if is_saved or "validation/loss" in line:
            gc.collect()

    def _take(self) -> StepResult:
        batch, seen = self.parts.batches.next()
        done = self.parts.stepper.take(batch)
        self._reporter.add(batch, done)
        self._state.samples_seen = seen
        if done.verdict == "spike":
            self._heed_spike(done)
        return done

    def _heed_spike(self, done: StepResult) -> None:
        """Say what happened; with `rollback` take weights and moments of the last checkpoint. All ranks agree."""
        action, step = self._config.spike_action, self._state.step
        said = {"warn": "taken all the same", "skip": "not taken", "rollback": "not taken"}[action]
        if action == "rollback":
            self._saver.wait()
            self._ranks.any(False)  # until rank 0 has written what it was writing
            newest = newest_checkpoint(self.parts.job.training)
            if newest is None:
                said = "not taken; there is no checkpoint yet to go back to"
            else:
                checkpointing.roll_back(self.parts.job, newest, self.parts.model, self.parts.optimizers)
                self._state.spike_window.clear()
                said = f"back to the weights of step {newest.step}"
        if self._ranks.is_first:
            log.warning("step %d: the loss is %.1f standard deviations above the last ones, %s", step, done.score, said)

    def _heed_bad_steps(self) -> None:
        """End a training whose gradients stay not finite.

        Raises:
            UserError: it names the documents in the last batch.
        """
        state, config = self._state, self._config
        if not state.bad_in_a_row:
            return
        if self._ranks.is_first:
            bad = counted(state.bad_in_a_row, "step")
            log.warning("step %d: the gradient is not finite, not taken (%s in a row)", state.step, bad)
        if state.bad_in_a_row < config.stop_after_bad_steps:
            return
        self._saver.wait()
        samples = np.arange(state.samples_seen - config.batch_size, state.samples_seen)
        starts, _ = self.parts.loader.order.places(samples)
        names = documents_at(self.parts.training, starts)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        newest = newest_checkpoint(self.parts.job.training)
        kept = f"step {newest.step} is kept" if newest else "nothing was saved yet"
        raise UserError(
            f"the gradient was not finite in {counted(state.bad_in_a_row, 'step')} in a row; {kept}; the last batch "
            f"held {', '.join(names[:_NAMED])}{more}",
            where=f"step {state.step}",
            hint="lower train.learning_rate, or look at these documents",
        )

    def _save(self) -> None:
        """Rank 0 copies the checkpoint's content and has it written in the background."""
        parts, step, before = self.parts, self._state.step, self._saved_step
        self._saved_step = step
        self._reporter.share_loss()
        if self._reporter.file is None:
            return
        began = time.perf_counter()
        self._saver.wait()
        if self._saver.failed is not None and self._state.best_step == before:
            self._saver.again()  # its copies are still there: without it another model than the best would be used
        taken = checkpointing.snapshot(
            parts.job, parts.model, parts.optimizers, self._state, parts.tokenizer, parts.copies
        )
        work = partial(checkpointing.write, parts.job, taken, self._reporter.file.contents())
        self._saver.start(work, f"checkpoint {storage.join(parts.job.training, step_name(step))}")
        self._reporter.add_saving(time.perf_counter() - began)

    def _outcome(self, status: str, reason: str) -> Outcome:
        state, training = self._state, self.parts.job.training
        if state.best_step and open_checkpoint(storage.join(training, step_name(state.best_step))) is None:
            state.best_step = None  # it could not be saved
        speed = state.tokens_seen / state.training_seconds if state.training_seconds else None
        return Outcome.model_validate(
            {
                "status": status,
                "reason": reason,
                "step": state.step,
                "tokens": state.tokens_seen,
                "checkpoint": storage.join(training, step_name(state.step)) if state.step else "",
                "best_step": state.best_step,
                "train_loss": state.train_loss,
                "validation_loss": state.validation_loss,
                "tokens_per_second": speed,
            }
        )
