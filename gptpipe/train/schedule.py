"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from gptpipe.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step (the first is 0): linear warm-up, then down to its last share.

    It falls over the last `decay_steps`, which by default are all after the warm-up, and with `wsd` (warmup, stable,
    decay; Hu et al. 2024) the last fifth: by half a cosine, otherwise linearly.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    decay = config.decay_steps
    if not decay:
        decay = max(1, config.steps // 5) if config.schedule == "wsd" else config.steps
    begin = max(config.warmup_steps, config.steps - decay)
    progress = min(1.0, max(0, step - begin) / max(1, config.steps - begin))
    fallen = 0.5 * (1 - math.cos(math.pi * progress)) if config.schedule == "cosine" else progress
    return config.learning_rate * (1 - (1 - config.min_learning_rate) * fallen)
