"""The sums of an evaluation, by document, by place in the window, by token. Sums of parts add up to the whole's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

BINS = 20  # of the calibration curve
COSTLIEST = 100


@dataclass
class Tally:
    """Nats are float64, counts int64. D documents, C context, V vocabulary.

    Attributes:
        document_nats, document_tokens, document_bytes: (D,).
        position_nats, position_tokens: (C + 1,), by how many tokens the model saw before the target.
        token_nats, token_count: (V,), by what the target was.
        bin_count, bin_probability, bin_right: (BINS,), of the likeliest token by its probability: how often, the sum of
            the probabilities, and how often it was the target.
        costliest: (COSTLIEST, 2), nats and place in the stream, dearest first; rows of zeros where there are fewer.
    """

    document_nats: np.ndarray
    document_tokens: np.ndarray
    document_bytes: np.ndarray
    position_nats: np.ndarray
    position_tokens: np.ndarray
    token_nats: np.ndarray
    token_count: np.ndarray
    bin_count: np.ndarray
    bin_probability: np.ndarray
    bin_right: np.ndarray
    costliest: np.ndarray

    @classmethod
    def empty(cls, documents: int, context: int, vocabulary: int) -> Tally:
        lengths = {"document": documents, "position": context + 1, "token": vocabulary, "bin": BINS}
        made = {}
        for each in fields(cls):
            kind = np.float64 if each.name.endswith(("nats", "probability")) else np.int64
            made[each.name] = np.zeros(lengths.get(each.name.split("_")[0], 0), kind)
        return cls(**{**made, "costliest": np.zeros((COSTLIEST, 2))})

    def add(
        self,
        *,
        documents: np.ndarray,
        places: np.ndarray,
        positions: np.ndarray,
        targets: np.ndarray,
        sizes: np.ndarray,
        nats: np.ndarray,
        top: np.ndarray,
        right: np.ndarray,
    ) -> None:
        """Add targets, each array of shape (n,).

        Args:
            documents, places: which document holds each, and its place in the stream.
            positions: tokens that the model saw before it.
            sizes: its UTF-8 bytes.
            top: the likeliest token's probability; right: whether that was the target.
        """
        np.add.at(self.document_nats, documents, nats)
        np.add.at(self.document_tokens, documents, 1)
        np.add.at(self.document_bytes, documents, sizes)
        np.add.at(self.position_nats, positions, nats)
        np.add.at(self.position_tokens, positions, 1)
        np.add.at(self.token_nats, targets, nats)
        np.add.at(self.token_count, targets, 1)
        bins = np.minimum((top * BINS).astype(np.int64), BINS - 1)
        np.add.at(self.bin_count, bins, 1)
        np.add.at(self.bin_probability, bins, top)
        np.add.at(self.bin_right, bins, right)
        self._keep(np.stack([nats, places], axis=1))

    def _keep(self, candidates: np.ndarray) -> None:
        both = np.concatenate([self.costliest, candidates])
        self.costliest = both[np.lexsort((both[:, 1], -both[:, 0]))[:COSTLIEST]]

    def merge(self, other: Tally) -> None:
        """Add what another rank has."""
        for each in fields(self):
            if each.name != "costliest":
                mine = getattr(self, each.name)
                mine += getattr(other, each.name)
        self._keep(other.costliest)

    def write(self, path: Path) -> None:
        np.savez(path, **{each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def read(cls, path: Path) -> Tally:
        with np.load(path) as arrays:
            return cls(**{each.name: arrays[each.name] for each in fields(cls)})

    @property
    def nats(self) -> float:
        return float(self.position_nats.sum())

    @property
    def tokens(self) -> int:
        return int(self.position_tokens.sum())

    @property
    def bytes(self) -> int:
        return int(self.document_bytes.sum())

    @property
    def accuracy(self) -> float:
        """How often the likeliest token was the target."""
        return float(self.bin_right.sum()) / max(1, self.tokens)
