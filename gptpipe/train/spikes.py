"""Steps that must not be taken: what is not finite, and a loss far outside what the last steps had."""

from __future__ import annotations

import math
import statistics
from typing import Literal

_FEWEST = 16  # losses from which a standard deviation is taken
_NARROWEST = 1e-3  # nats: losses that hardly vary must not make a small step a spike


class SpikeGuard:
    """Tells a loss that lies `threshold` standard deviations above the mean of the last `window` ordinary ones.

    Args:
        losses: of earlier steps, oldest first; kept up to date in place, so that it can be saved.
    """

    def __init__(self, window: int, threshold: float, losses: list[float]) -> None:
        self._window, self._threshold, self.losses = window, threshold, losses

    def score(self, loss: float) -> float:
        """How many standard deviations above the mean, 0 while there are too few losses to say."""
        if len(self.losses) < min(_FEWEST, self._window):
            return 0.0
        spread = max(statistics.pstdev(self.losses), _NARROWEST)
        return (loss - statistics.fmean(self.losses)) / spread

    def judge(self, loss: float) -> Literal["ordinary", "spike"]:
        """Whether this loss is a spike. Ordinary ones are remembered."""
        if not math.isfinite(loss) or self.score(loss) > self._threshold:
            return "spike"
        self.losses.append(loss)
        del self.losses[: -self._window]
        return "ordinary"
