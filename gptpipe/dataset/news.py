"""Which documents of a dataset are new since an earlier one.

Text is known by what it says, not by where it lies: a document that was moved, or whose file has grown by others, is
not new. Only shards that the other dataset has not are read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from gptpipe import storage
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.pieces import hashes_of, pieces_of
from gptpipe.errors import UserError


@dataclass(frozen=True)
class News:
    """What one split of a dataset holds that the same split of an earlier one did not.

    Attributes:
        stretches: (begin, end) of new text in the split's stream, separators counted, ascending and apart, (n, 2).
        documents, tokens: how many of them are new; a document that is cut over several shards counts in each.
        names: `corpus:document id` of the new documents.
        gone: documents of the earlier one that are not there any more.
    """

    stretches: np.ndarray
    documents: int
    tokens: int
    names: frozenset[str]
    gone: int


def news_since(earlier: Dataset, dataset: Dataset, split: str) -> News:
    """What is new in a split. A tokenizer that is not the earlier one's makes everything new.

    Raises:
        UserError: a shard that must be read is gone or damaged.
    """
    before, now = earlier.index(split), dataset.index(split)
    shared, known = set[str](), np.empty(0, dtype=np.uint64)
    if earlier.tokenizer["sha256"] == dataset.tokenizer["sha256"]:
        shared = set(before.digests()) & set(now.digests())
        known = hashes_of(pieces_of(earlier, (file for file in before if file.sha256 not in shared)))
    hashes: list[int] = []
    spans: list[tuple[int, int]] = []
    names: list[str] = []
    begins = np.concatenate([[0], np.cumsum(now.stream_lengths)])
    for number, digest in enumerate(now.digests()):
        if digest in shared:
            continue
        file = now[number]
        for piece in pieces_of(dataset, [file]):
            hashes.append(piece.hash)
            begin = int(begins[number]) + piece.begin
            spans.append((begin, begin + piece.length))
            names.append(f"{file.corpus}:{piece.name}")
    own = np.array(hashes, dtype=np.uint64)
    new = ~np.isin(own, known)
    places = np.array(spans, dtype=np.int64).reshape(-1, 2)[new]
    return News(
        stretches=_joined(places),
        documents=int(new.sum()),
        tokens=int((places[:, 1] - places[:, 0]).sum()),
        names=frozenset(name for name, is_new in zip(names, new.tolist(), strict=True) if is_new),
        gone=int((~np.isin(known, own)).sum()),
    )


def write_stretches(url: str, stretches: np.ndarray) -> str:
    """Keep stretches in a file; its SHA-256."""
    content = np.ascontiguousarray(stretches, dtype="<i8").tobytes()
    storage.write_bytes(url, content)
    return hashlib.sha256(content).hexdigest()


def read_stretches(url: str, sha256: str) -> np.ndarray:
    """What `write_stretches` has kept, shape (n, 2).

    Raises:
        UserError: it is gone or damaged.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            "the list of what is new is missing or damaged", where=url, hint="start the training again, which makes it"
        )
    return np.frombuffer(content, dtype="<i8").reshape(-1, 2).astype(np.int64)


def _joined(places: np.ndarray) -> np.ndarray:
    """Stretches that touch, as one."""
    if not len(places):
        return places
    first = np.concatenate([[True], places[1:, 0] != places[:-1, 1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([places[first, 0], places[last, 1]], axis=1)
