"""How the next token is drawn from logits, on any device.

The draws of a row depend on (seed, row, position) alone, so that a prompt's text depends neither on which other rows
end early nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gptpipe.config import SampleConfig


def uniform(seed: int, row: int, position: int) -> float:
    """The number in [0, 1) by which a row's token at a position is drawn."""
    return float(np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, row, position]))).random())


def choose(
    logits: Tensor,
    config: SampleConfig,
    *,
    rows: Sequence[int],
    positions: Sequence[int],
    seen: Sequence[Sequence[int]] = (),
) -> list[int]:
    """The next token of each row of logits (B, V), float32.

    Args:
        rows, positions: what `uniform` is given.
        seen: the tokens of each row so far, for the repetition penalty.
    """
    if config.repetition_penalty != 1:
        logits = penalized(logits, seen_mask(seen, logits), config.repetition_penalty)
    draws = []
    if config.temperature:
        draws = [uniform(config.seed, row, position) for row, position in zip(rows, positions, strict=True)]
    chosen: list[int] = drawn(logits, config, torch.tensor(draws, dtype=torch.float64, device=logits.device)).tolist()
    return chosen


def drawn(logits: Tensor, config: SampleConfig, uniforms: Tensor) -> Tensor:
    """The next token of each row of logits (B, V), the repetition penalty already in them; (B,), int64.

    Temperature 0 takes the likeliest, of those that are as likely the first. Otherwise one is drawn from what
    `candidates` leaves.

    Args:
        uniforms: numbers in [0, 1), (B,), float64; not looked at if the temperature is 0.
    """
    if config.temperature == 0:
        if logits.device.type == "cpu":  # torch's takes three times as long
            return torch.from_numpy(logits.numpy().argmax(axis=-1))
        return logits.argmax(dim=-1)
    probabilities, indices = candidates(logits, config)
    cumulative = probabilities.cumsum(dim=-1)
    places = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return indices.gather(1, places.clamp(max=indices.shape[1] - 1)).squeeze(1)


def seen_mask(seen: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Which tokens each row holds already, (B, V), bool, on the device of `logits`."""
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    for line, ids in zip(mask, seen, strict=True):
        line[torch.tensor(ids)] = True
    return mask.to(logits.device)


def penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of tokens that a row holds already divided by the penalty, or multiplied where negative (Keskar 2019).

    Args:
        seen: which those are, as `seen_mask` gives them.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(logits: Tensor, config: SampleConfig) -> tuple[Tensor, Tensor]:
    """Probabilities (B, n), float64 and not normalised, and their tokens (B, n), likeliest first.

    Logits are divided by the temperature, cut to the `top_k` likeliest, to the fewest that reach `top_p` (nucleus
    sampling, Holtzman et al. 2020), and to those at least `min_p` times as likely as the likeliest (Nguyen et al.
    2024).
    """
    wide = logits.double()
    if 0 < config.top_k < wide.shape[-1]:
        ordered, indices = torch.topk(wide, config.top_k, dim=-1)
    else:
        ordered, indices = torch.sort(wide, dim=-1, descending=True, stable=True)
    # the greatest is taken off first: by a tiny temperature it would come to infinity
    ordered = (ordered - ordered[:, :1]) / config.temperature
    probabilities = torch.softmax(ordered, dim=-1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = torch.where(before < config.top_p, probabilities, 0.0)
    if config.min_p > 0:
        probabilities = torch.where(probabilities >= config.min_p * probabilities[:, :1], probabilities, 0.0)
    return probabilities, indices
