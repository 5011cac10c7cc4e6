"""One optimizer step: micro-batches forward and backward, gradients over all ranks, and the decision to take it.

Loss and gradients are sums over a step's target tokens divided by their global number, so that accumulation and
world size do not change the result. Dropout is seeded from (seed, step, micro-step, rank), so that no generator
state is carried from one start to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gptpipe.config import TrainConfig
from gptpipe.dataset.loader import TrainBatch
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import Precision
from gptpipe.train.adamw import AdamW
from gptpipe.train.compiler import uncompiled
from gptpipe.train.distributed import Ranks, without_sync
from gptpipe.train.optimizer import Optimizer
from gptpipe.train.schedule import learning_rate
from gptpipe.train.spikes import SpikeGuard
from gptpipe.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        loss: this rank's summed loss, in nats.
        tokens: targets of the global batch.
        grad_norm: of the whole gradient, before clipping.
        verdict: what the guard says of the loss; without a guard always ordinary.
        score: standard deviations of the loss above the last ones, where a guard looked.
    """

    loss: Tensor
    tokens: int
    grad_norm: Tensor
    learning_rate: float
    verdict: Literal["ordinary", "spike"] = "ordinary"
    score: float = 0.0


class Stepper:
    """Takes optimizer steps on the wrapped model.

    A gradient that is not finite is so on every rank once it is summed, so all skip the step without asking each
    other. Where the kernel can, the decision stays on the device: nothing waits for it, and `settle` counts later.

    Args:
        before_update: called in each step before weights and moments are written to.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        model: GPT,
        optimizers: list[Optimizer],
        config: TrainConfig,
        ranks: Ranks,
        precision: Precision,
        state: TrainState,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_update = before_update
        self._wrapped, self.model, self._optimizers = wrapped, model, optimizers
        self._config, self._ranks, self._precision, self.state = config, ranks, precision, state
        self._guard: SpikeGuard | None = None
        if config.spike_action != "off":
            self._guard = SpikeGuard(config.spike_window, config.spike_zscore, state.spike_window)
        self.decides_on_device = ranks.device.type == "cuda" and self._guard is None and config.optimizer == "adamw"
        self._skipped = torch.zeros((), dtype=torch.int64, device=ranks.device)
        self._in_a_row = torch.full((), state.bad_in_a_row, dtype=torch.int64, device=ranks.device)

    def take(self, batch: TrainBatch) -> StepResult:
        """One step over this rank's part of a global batch."""
        config, state = self._config, self.state
        rate = learning_rate(state.step, config)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
        loss = self.backward(batch)
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # where the norm is known here anyway, gradients that need no scaling are not gone through again
        if config.grad_clip and (self.decides_on_device or not norm.item() <= config.grad_clip):
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, norm)
        self._before_update()
        verdict: Literal["ordinary", "spike"] = "ordinary"
        score = 0.0
        if self.decides_on_device:
            self._step_if_finite(norm)
        else:
            good = math.isfinite(norm.item())
            if good and self._guard is not None:
                mean = self._ranks.sum(loss.item())[0] / batch.tokens
                score, verdict = self._guard.score(mean), self._guard.judge(mean)
            take = good and (verdict == "ordinary" or config.spike_action == "warn")
            if take:
                for optimizer in self._optimizers:
                    optimizer.step()
            state.skipped_steps += not take
            state.bad_in_a_row = 0 if good else state.bad_in_a_row + 1
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        state.step += 1
        state.tokens_seen += batch.tokens
        return StepResult(loss, batch.tokens, norm, rate, verdict, score)

    def settle(self) -> None:
        """Count what was decided on the device so far into the state."""
        if self.decides_on_device:
            self.state.skipped_steps += int(self._skipped)
            self.state.bad_in_a_row = int(self._in_a_row)
            self._skipped.zero_()

    def backward(self, batch: TrainBatch) -> Tensor:
        """Gradients of the whole batch; this rank's summed loss, float64."""
        state = self.state
        total = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        # DDP takes the mean over ranks of what each hands in; the loss is the mean over all target tokens
        scale = self._ranks.world_size / batch.tokens
        starts = range(0, len(batch.inputs), state.micro_batch)
        for micro, start in enumerate(starts):
            part = slice(start, start + state.micro_batch)
            if self.model.config.dropout:
                torch.manual_seed(dropout_seed(self._config.seed, state.step, micro, self._ranks.rank))
            windows = batch.inputs[part]
            # what is left over is smaller: no shape that was tried, and not worth compiling for
            is_rest = len(starts) > 1 and len(windows) < state.micro_batch
            with without_sync(self._wrapped, skip=start != starts[-1]):
                with self._precision.autocast(), uncompiled(state) if is_rest else nullcontext():
                    loss = self._wrapped(windows, batch.targets[part])
                (loss * scale).backward()
            total += loss.detach()
        return total

    def _step_if_finite(self, norm: Tensor) -> None:
        bad = ~norm.isfinite()
        for optimizer in self._optimizers:
            assert isinstance(optimizer, AdamW)  # the only one whose kernel can be told
            optimizer.step(bad.float())
        self._skipped += bad
        self._in_a_row.add_(1).mul_(bad)


def dropout_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """The generator's seed of a micro-step: a well-mixed 63-bit number of all four."""
    return int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
