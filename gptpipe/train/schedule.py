"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from gptpipe.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step (the first is 0): linear warm-up, then down to its last share.

    `cosine` and `linear` fall from the end of the warm-up to the last step. `wsd` (warmup, stable, decay; Hu et al.
    2024) stays at the highest rate and falls linearly over the last `decay_steps`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    begin = config.warmup_steps
    if config.schedule == "wsd":
        begin = max(begin, config.steps - (config.decay_steps or max(1, config.steps // 5)))
    progress = min(1.0, max(0, step - begin) / max(1, config.steps - begin))
    fallen = 0.5 * (1 - math.cos(math.pi * progress)) if config.schedule == "cosine" else progress
    return config.learning_rate * (1 - (1 - config.min_learning_rate) * fallen)
