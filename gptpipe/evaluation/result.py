"""What an evaluation comes to: its numbers, the comparison with other weights, and its page."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe.evaluation.confidence import Comparison, Interval
from gptpipe.evaluation.documents import Documents
from gptpipe.evaluation.page import loss_page
from gptpipe.evaluation.tally import Tally
from gptpipe.evaluation.tasks import TaskScore
from gptpipe.model.gpt import GPT

_FEW_TOKENS = 1000


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a text.

    Attributes:
        cross_entropy: nats per token. bits_per_token: the same in bits. perplexity: e to the nats.
        bits_per_byte: bits per UTF-8 byte of the text scored. byte_perplexity: 2 to the bits.
        word_perplexity: e to the nats per word; None where only a part is scored.
        interval: standard error and 95 % interval of the cross-entropy; None with too few documents.
        accuracy: share of targets that were the likeliest token.
        calibration_error: mean gap between the likeliest token's probability and how often it is right.
        tokens: targets scored. bytes, words: what they stand for. documents: how many hold some.
        uniform: cross-entropy of guessing among the whole vocabulary, ln V.
        unigram: cross-entropy of the best guess that ignores the context: the entropy of the text's own token
            frequencies, in the whole split or text.
        scored: what was scored. windows: how it was cut.
        parts: rows by corpus, length of document, tokens seen before, frequency of the token.
        costliest: documents, tokens and places that cost most.
        calibration: the likeliest token's probability against how often it was right.
        tasks: what it scored on tasks with a right answer.
        page: URL of a page that shows the loss in the text; empty where none was written.
        data: URL of the dataset; empty where this is not kept.
        against: other weights on the same documents, where they were asked for.
    """

    cross_entropy: float
    bits_per_token: float
    perplexity: float
    bits_per_byte: float
    byte_perplexity: float
    word_perplexity: float | None
    interval: Interval | None
    accuracy: float
    calibration_error: float
    tokens: int
    bytes: int
    words: int | None
    documents: int
    uniform: float
    unigram: float
    scored: str
    windows: str
    precision: str
    weights: str
    parts: dict[str, list[dict[str, Any]]]
    costliest: dict[str, list[dict[str, Any]]]
    calibration: list[dict[str, Any]]
    tasks: list[TaskScore] = field(default_factory=list)
    page: str = ""
    data: str = ""
    already_done: bool = False
    against: Against | None = None

    @property
    def sentence(self) -> str:
        """What the number means."""
        vocabulary = round(math.exp(self.uniform))
        guess = f"cross-entropy {self.cross_entropy:.3f} nats per token: "
        if self.cross_entropy >= self.uniform:
            return f"{guess}no better than guessing among all {vocabulary:,} tokens ({self.uniform:.3f})"
        guess += f"as unsure as choosing among {self.perplexity:,.0f} of {vocabulary:,} tokens"
        if self.tokens < _FEW_TOKENS:  # the frequencies of so few tokens say nearly which they are
            return guess
        gain = self.unigram - self.cross_entropy
        side = f"{gain:.2f} nats better than" if gain >= 0 else f"{-gain:.2f} nats worse than"
        return f"{guess}, {side} knowing the text's token frequencies alone ({self.unigram:.3f})"

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers a person compares, each with its unit in its name."""
        numbers: dict[str, Any] = {"cross-entropy, nats per token": self.cross_entropy}
        if self.interval is not None:
            numbers["95 % interval"] = f"{self.interval.low:.4f} to {self.interval.high:.4f}"
        return {
            **numbers,
            "cross-entropy, bits per token": self.bits_per_token,
            "perplexity, a token": self.perplexity,
            "perplexity, a word": self.word_perplexity,
            "perplexity, a byte": self.byte_perplexity,
            "bits per byte": self.bits_per_byte,
            "likeliest token right": self.accuracy,
            "calibration error": self.calibration_error,
            **{name: value for each in self.tasks for name, value in each.numbers.items()},
        }

    def as_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "sentence": self.sentence}
        del values["against"]
        return values if self.against is None else {**values, "against": self.against.as_dict()}


@dataclass(frozen=True)
class Against:
    """Other weights on the same documents.

    Attributes:
        evaluation: theirs. comparison: of the first's loss with theirs.
        corpora: the same for each corpus, where there are several, with intervals so much wider that all of them
            together cover the truth as often as one does.
        ages: the same for new and for old text, where they are told apart.
    """

    evaluation: Evaluation
    comparison: Comparison
    corpora: dict[str, Comparison] = field(default_factory=dict)
    ages: dict[str, Comparison] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        comparison = {**asdict(self.comparison), "sentence": self.comparison.sentence}
        corpora = {name: asdict(each) for name, each in self.corpora.items()}
        values = {**self.evaluation.as_dict(), "comparison": comparison, "corpora": corpora}
        return {**values, "ages": {name: asdict(each) for name, each in self.ages.items()}} if self.ages else values


@dataclass(frozen=True)
class Scored:
    """An evaluation with what it was made from."""

    evaluation: Evaluation
    tally: Tally
    documents: Documents
    model: GPT

    def page(self) -> str:
        """A page of HTML that shows the loss in the text."""
        return loss_page(self.evaluation.as_dict(), self.evaluation.numbers, self.model, self.documents, self.tally)

    def table(self) -> bytes:
        """Parquet with a row per document, for comparisons: name, corpus, tokens, bytes, nats."""
        columns = {
            "document": self.documents.names,
            "corpus": self.documents.corpus_names,
            "tokens": self.tally.document_tokens,
            "bytes": self.tally.document_bytes,
            "nats": self.tally.document_nats,
        }
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file, compression="zstd")
        return file.getvalue()


def power(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def entropy(counts: np.ndarray) -> float:
    """Entropy of frequencies, in nats: no guess that ignores the context has a lower cross-entropy on them."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
