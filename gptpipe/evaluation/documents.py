"""What is scored: a split or a text as one stream of tokens, and the documents in it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from gptpipe.dataset.cache import read_shard
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.tokenizer import Tokenizer
from gptpipe.wording import counted

_BLOCK = 1 << 24  # tokens
_SPACES = re.compile(r"\s+")


class Tokens(Protocol):
    """A stream that can be read in pieces."""

    length: int

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Documents:
    """The documents of a stream, in its order.

    Attributes:
        starts, ends: each one's first token and the one after its last, shape (D,), int64. In a split the separator
            stands at `ends`.
        corpora: names; corpus: which of them each document is from, shape (D,), int64.
        counts: how often each token of the vocabulary is there, the stream's first token left out, shape (V,).
    """

    tokens: Tokens
    tokenizer: Tokenizer
    starts: np.ndarray
    ends: np.ndarray
    corpora: list[str]
    corpus: np.ndarray
    counts: np.ndarray

    @classmethod
    def bare(cls, tokens: Tokens, tokenizer: Tokenizer, starts: np.ndarray, ends: np.ndarray) -> Documents:
        """What scoring needs of them, and nothing of what is said about them afterwards."""
        nothing = np.zeros(len(starts), dtype=np.int64)
        return cls(tokens, tokenizer, starts, ends, ["text"], nothing, np.zeros(tokenizer.vocab_size, np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def corpus_names(self) -> np.ndarray:
        """The corpus of each document, shape (D,)."""
        return np.asarray(np.array(self.corpora)[self.corpus])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (exclusive), int64; at place -1 there is the separator."""
        ids = self.tokens.read(max(start, 0), stop).astype(np.int64)
        return np.concatenate([[self.tokenizer.end_of_text], ids]) if start < 0 else ids

    def of(self, places: np.ndarray) -> np.ndarray:
        """The documents that hold these places of the stream; a separator belongs to the one before it."""
        return np.minimum(np.searchsorted(self.ends, places, side="left"), len(self) - 1)

    def words(self, numbers: np.ndarray) -> int:
        """Words of these documents together; they are decoded for it."""
        pieces = zip(self.starts[numbers].tolist(), self.ends[numbers].tolist(), strict=True)
        return sum(count_words(self.tokenizer.decode(self.read(start, end).tolist())) for start, end in pieces)

    @cached_property
    def names(self) -> list[str]:
        """`corpus:document id` of each, read from the shards; empty names where there are none."""
        split = self.tokens.split if isinstance(self.tokens, TextTokens) else self.tokens
        return list(_names(split)) if isinstance(split, TokenStream) else [""] * len(self)


class TextTokens:
    """The tokens of a text in memory; of the documents of a split, where one is given."""

    def __init__(self, ids: np.ndarray, split: TokenStream | None = None) -> None:
        self.ids, self.length, self.split = ids, len(ids), split

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


def documents_of_text(text: str, tokenizer: Tokenizer, *, apart: bool = False) -> Documents:
    """A text as one document.

    Args:
        apart: whether its first token is predicted too, after a separator.

    Raises:
        UserError: none of its tokens has one before it.
    """
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    if len(ids) + apart < 2:
        raise UserError(
            f"{counted(len(ids), 'token')}: nothing has a token before it", where="text", hint="give a longer text"
        )
    return Documents(
        tokens=TextTokens(ids),
        tokenizer=tokenizer,
        starts=np.zeros(1, dtype=np.int64),
        ends=np.array([len(ids)], dtype=np.int64),
        corpora=["text"],
        corpus=np.zeros(1, dtype=np.int64),
        counts=np.bincount(ids[0 if apart else 1 :], minlength=tokenizer.vocab_size),
    )


def documents_of_split(stream: TokenStream, tokenizer: Tokenizer) -> Documents:
    """The documents of a split. Reads it once."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    separators = []
    for start in range(0, stream.length, _BLOCK):
        ids = stream.read(start, min(start + _BLOCK, stream.length))
        counts += np.bincount(ids[start == 0 :], minlength=len(counts))
        separators.append(np.flatnonzero(ids == stream.end_of_text) + start)
    ends = np.concatenate(separators).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    return Documents(
        tokens=stream,
        tokenizer=tokenizer,
        starts=starts,
        ends=ends,
        corpora=stream.corpora,
        corpus=np.searchsorted(stream.corpus_starts, starts, side="right") - 1,
        counts=counts,
    )


def in_tokens_of(tokenizer: Tokenizer, documents: Documents, chosen: np.ndarray) -> Documents:
    """The documents of a split in another tokenizer's tokens, in memory; all but the chosen ones are empty.

    Args:
        chosen: numbers of documents, ascending.
    """
    own, pieces = documents.tokenizer, []
    sizes = np.zeros(len(documents), dtype=np.int64)
    for number in chosen.tolist():
        text = own.decode(documents.read(int(documents.starts[number]), int(documents.ends[number])).tolist())
        ids = tokenizer.encode(text)
        sizes[number] = len(ids)
        pieces.append(np.array([*ids, tokenizer.end_of_text], dtype=np.uint32))
    # an empty document has a separator as well, like any other
    lengths = sizes + 1
    ends = np.cumsum(lengths) - 1
    tokens = np.full(int(lengths.sum()), tokenizer.end_of_text, dtype=np.uint32)
    for number, piece in zip(chosen.tolist(), pieces, strict=True):
        tokens[ends[number] - sizes[number] : ends[number] + 1] = piece
    stream = documents.tokens
    return Documents(
        tokens=TextTokens(tokens, stream if isinstance(stream, TokenStream) else None),
        tokenizer=tokenizer,
        starts=ends - sizes,
        ends=ends,
        corpora=documents.corpora,
        corpus=documents.corpus,
        counts=np.bincount(tokens[1:], minlength=tokenizer.vocab_size),
    )


def count_words(text: str) -> int:
    """Words as lm-evaluation-harness counts them: the pieces that white space leaves, empty ones at the ends too."""
    return 1 + sum(1 for _ in _SPACES.finditer(text))


def _names(stream: TokenStream) -> Iterator[str]:
    for file in stream.index:
        table = pq.read_table(io.BytesIO(read_shard(stream.dataset.url, file)), columns=["document_id", "last"])
        for name, last in zip(table["document_id"].to_pylist(), table["last"].to_pylist(), strict=True):
            if last:
                yield f"{file.corpus}:{name}"
