"""torch's layers, which draw no numbers on the meta device: to find no place for them, torch imports for a second."""

from __future__ import annotations

from torch import nn


class _DrawnIfReal:
    def reset_parameters(self) -> None:
        """Draw the first numbers, where there is a place for them."""
        if not self.weight.is_meta:  # type: ignore[attr-defined]
            super().reset_parameters()  # type: ignore[misc]


class Linear(_DrawnIfReal, nn.Linear):
    """(…, in) to (…, out)."""


class Embedding(_DrawnIfReal, nn.Embedding):
    """Ids to rows."""


class LayerNorm(_DrawnIfReal, nn.LayerNorm):
    """Normalisation over the last axis."""
