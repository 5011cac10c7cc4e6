"""How much of the text that a model is scored on stands in the text that it was trained on, document by document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.pieces import hashes_of, pieces_of
from gptpipe.wording import counted

_EXAMPLES = 3


@dataclass(frozen=True)
class Overlap:
    """Documents of an evaluation set that are in the training text word for word.

    Attributes:
        documents, tokens: how many these are, separators counted.
        of_tokens: of the whole evaluation set.
        examples: `corpus:document id` of the longest of them.
    """

    documents: int
    tokens: int
    of_tokens: int
    examples: list[str]

    @property
    def share(self) -> float:
        """Of the evaluation set's tokens."""
        return self.tokens / self.of_tokens if self.of_tokens else 0.0

    @property
    def sentence(self) -> str:
        return (
            f"{self.share:.2%} of the evaluation's text stands in the training text word for word: "
            f"{counted(self.documents, 'document')} of {counted(self.tokens, 'token')}, as {', '.join(self.examples)}"
        )


def overlap(evaluation: Dataset, split: str, training: Dataset) -> Overlap:
    """Documents of a split that are in the training split of a dataset with the same tokenizer.

    Every shard of both is read once. A document that is cut over several shards is looked up in pieces, and so is
    found only where the other was cut alike.

    Raises:
        UserError: a shard is gone or damaged.
    """
    scored = evaluation.index(split)
    pieces = [(f"{file.corpus}:{piece.name}", piece) for file in scored for piece in pieces_of(evaluation, [file])]
    lengths = np.array([piece.length for _, piece in pieces], dtype=np.int64)
    hashes = hashes_of(piece for _, piece in pieces)
    there = np.zeros(len(pieces), dtype=bool)
    for file in training.index("train"):
        there |= np.isin(hashes, hashes_of(pieces_of(training, [file])))
    at = np.flatnonzero(there)
    longest = at[np.argsort(-lengths[at], kind="stable")][:_EXAMPLES]
    return Overlap(len(at), int(lengths[at].sum()), int(lengths.sum()), [pieces[place][0] for place in longest])
