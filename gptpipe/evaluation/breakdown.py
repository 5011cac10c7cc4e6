"""Where the loss is: by corpus, length of document, tokens seen before, frequency of the token; and what costs most."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gptpipe.evaluation.documents import Documents
from gptpipe.evaluation.tally import BINS, Tally

_LENGTHS = (0, 64, 256, 1024, 4096, 16384)  # tokens of a document, from
_RANKS = (0, 10, 100, 1000, 10000)  # of tokens by how often they are there, from
_WORST = 20


def parts(tally: Tally, documents: Documents) -> dict[str, list[dict[str, Any]]]:
    """Rows of name, tokens, cross-entropy (nats per token) and share of all nats, under `corpus`, `length`, `position`
    and `frequency`. Empty ones are left out.
    """
    sizes = documents.ends - documents.starts
    by_length = np.digitize(sizes, _LENGTHS) - 1
    seen = np.arange(len(tally.position_nats))
    by_seen = np.frexp(np.maximum(seen, 1))[1] - 1  # 1, 2 to 3, 4 to 7 …
    ranks = np.empty(len(documents.counts), dtype=np.int64)
    ranks[np.argsort(-documents.counts, kind="stable")] = np.arange(len(ranks))
    by_rank = np.digitize(ranks, _RANKS) - 1
    seen_names = [_span(1 << i, min((2 << i) - 1, int(seen[-1]))) for i in range(int(by_seen.max()) + 1)]
    return {
        "corpus": _rows(documents.corpus, documents.corpora, tally.document_nats, tally.document_tokens),
        "length": _rows(by_length, _names(_LENGTHS), tally.document_nats, tally.document_tokens),
        "position": _rows(by_seen, seen_names, tally.position_nats, tally.position_tokens),
        "frequency": _rows(by_rank, _names(_RANKS, 1), tally.token_nats, tally.token_count),
    }


def _rows(group: np.ndarray, names: list[str], nats: np.ndarray, tokens: np.ndarray) -> list[dict[str, Any]]:
    sums = np.bincount(group, weights=nats, minlength=len(names))
    counts = np.bincount(group, weights=tokens, minlength=len(names)).astype(np.int64)
    whole = max(float(nats.sum()), 1e-300)
    return [
        {"name": name, "tokens": int(count), "cross_entropy": float(total / count), "share": float(total / whole)}
        for name, total, count in zip(names, sums, counts, strict=True)
        if count
    ]


def _names(edges: tuple[int, ...], first: int = 0) -> list[str]:
    spans = [_span(low + first, high - 1 + first) for low, high in pairwise(edges)]
    return [*spans, f"from {edges[-1] + first:,}"]


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def costliest(tally: Tally, documents: Documents) -> dict[str, list[dict[str, Any]]]:
    """What costs most: `documents` by their nats per token, `tokens` (as they are in the vocabulary) by all their nats
    together, and `places`, single targets by their nats.
    """
    scored = np.flatnonzero(tally.document_tokens)
    means = tally.document_nats[scored] / tally.document_tokens[scored]
    worst = scored[np.argsort(-means, kind="stable")[:_WORST]]
    names = documents.names
    tokens = np.argsort(-tally.token_nats, kind="stable")[:_WORST]
    places = [(float(nats), int(place)) for nats, place in tally.costliest[:_WORST] if nats > 0]
    whole = max(tally.nats, 1e-300)
    return {
        "documents": [
            {
                "document": names[i] or f"document {i + 1}",
                "tokens": int(tally.document_tokens[i]),
                "cross_entropy": float(tally.document_nats[i] / tally.document_tokens[i]),
            }
            for i in worst
        ],
        "tokens": [
            {
                "token": documents.tokenizer.decode([int(i)]),
                "times": int(tally.token_count[i]),
                "cross_entropy": float(tally.token_nats[i] / tally.token_count[i]),
                "share": float(tally.token_nats[i] / whole),
            }
            for i in tokens
            if tally.token_count[i]
        ],
        "places": [
            {
                "token": documents.tokenizer.decode([int(documents.read(place, place + 1)[0])]),
                "nats": nats,
                "after": documents.tokenizer.decode(
                    documents.read(max(int(documents.starts[number]), place - 12), place).tolist()
                ),
                "document": names[number] or f"document {number + 1}",
            }
            for nats, place in places
            for number in [int(documents.of(np.array([place]))[0])]
        ],
    }


def calibration(tally: Tally) -> list[dict[str, Any]]:
    """The likeliest token's mean probability and how often it was right, by its probability; empty bins left out."""
    rows = []
    for i in range(BINS):
        if count := int(tally.bin_count[i]):
            probability, right = float(tally.bin_probability[i]) / count, int(tally.bin_right[i]) / count
            rows.append({"from": i / BINS, "tokens": count, "probability": probability, "right": right})
    return rows


def calibration_error(tally: Tally) -> float:
    """Expected calibration error (Guo et al. 2017): the mean gap between probability and share right, over tokens."""
    gaps = np.abs(tally.bin_probability - tally.bin_right).sum()
    return float(gaps) / max(1, tally.tokens)
