"""A dataset at a glance: how much of what, how long, how frequent, and what it reads like."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gptpipe.dataset.cache import read_shard
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.rows import ShardReader
from gptpipe.wording import counted

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LOOKED_AT = 10_000_000  # tokens: the rest of a larger dataset is not read
_EXCERPT = 60  # tokens
_MOST_FREQUENT = 20
_EXCERPTS = 3


@dataclass(frozen=True)
class Inspection:
    """What a dataset holds. Totals are of all of it, the rest of `tokens_read` tokens of whole shards.

    Attributes:
        splits: split → documents, tokens, bytes, shards.
        bytes_per_token: UTF-8 bytes of text a token.
        corpora: corpus → its share of the tokens.
        lengths: quantile → tokens of a document.
        frequent: (token as text, its share of the tokens), the most frequent first.
        excerpts: (document id, the text it begins with).
        dropped: reason → documents left out.
        histogram: (fewest tokens, most tokens, documents) in steps of powers of two.
    """

    dataset: str
    id: str
    tokenizer: str
    documents: int
    tokens: int
    shards: int
    bytes_per_token: float
    splits: dict[str, dict[str, int]]
    corpora: dict[str, float]
    lengths: dict[str, int]
    frequent: list[tuple[str, float]]
    excerpts: list[tuple[str, str]]
    dropped: dict[str, int]
    histogram: list[tuple[int, int, int]]
    tokens_read: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(url: str) -> Inspection:
    """Look at a dataset. Of a large one only shards with 10 M tokens together are read, spread evenly.

    Raises:
        UserError: there is no dataset, or a shard is damaged.
    """
    dataset = open_dataset(url)
    tokenizer = dataset.load_tokenizer()
    lengths, counts, firsts = _read(dataset, tokenizer.vocab_size)
    read = int(counts.sum())
    order = np.argsort(-counts, kind="stable")[:_MOST_FREQUENT]
    names = {f"{quantile:.0%}": int(np.quantile(lengths, quantile, method="nearest")) for quantile in QUANTILES}
    shown = min(_EXCERPTS, len(firsts))
    chosen = [firsts[i * len(firsts) // shown] for i in range(shown)]
    tokens = dataset.total("tokens")
    splits: dict[str, dict[str, int]] = {}
    for split in dataset.index().splits():
        splits[split] = {what: dataset.total(what, split) for what in ("documents", "tokens", "bytes", "shards")}
    return Inspection(
        dataset=dataset.url,
        id=dataset.id,
        tokenizer=tokenizer.name,
        documents=dataset.total("documents"),
        tokens=tokens,
        shards=dataset.total("shards"),
        bytes_per_token=dataset.total("bytes") / max(1, tokens),
        splits=splits,
        corpora={
            name: sum(split["tokens"] for split in corpus["splits"].values()) / max(1, tokens)
            for name, corpus in dataset.manifest["corpora"].items()
        },
        lengths=names,
        frequent=[(tokenizer.decode([int(i)]), float(counts[i] / read)) for i in order if counts[i]],
        excerpts=[(identity, tokenizer.decode(ids)) for identity, ids in chosen],
        dropped=dataset.dropped,
        histogram=_histogram(lengths),
        tokens_read=read,
    )


def _read(dataset: Dataset, vocab_size: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, list[int]]]]:
    """Lengths of documents, counts of tokens, and how the first document that begins in a shard does."""
    index = dataset.index()
    looked_at = max(1, min(len(index), int(len(index) * LOOKED_AT / max(1, dataset.total("tokens")))))
    counts = np.zeros(vocab_size, dtype=np.int64)
    lengths: list[int] = []
    firsts: list[tuple[str, list[int]]] = []
    document, length = ("", ""), 0  # a large document goes on in the next shard
    for number in range(looked_at):
        file = index[number * len(index) // looked_at]
        pieces: list[np.ndarray] = []
        begun = False
        for row in ShardReader(read_shard(dataset.url, file)).rows():
            if row.part == 0 and not begun:  # a shard may go on with a document of the one before
                begun = True
                firsts.append((row.document_id, row.tokens[:_EXCERPT].tolist()))
            pieces.append(row.tokens)
            if (file.corpus, row.document_id) != document and length:
                lengths.append(length)
                length = 0
            document = file.corpus, row.document_id
            length += len(row.tokens)
            if row.last:
                lengths.append(length)
                length = 0
        counts += np.bincount(np.concatenate(pieces), minlength=vocab_size)
    if length:
        lengths.append(length)
    return np.array(lengths, dtype=np.int64), counts, firsts


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    edges = [1 << power for power in range(int(lengths.max()).bit_length() + 1)]
    counts = np.histogram(lengths, bins=edges)[0].tolist() if len(edges) > 1 else []
    rows = [(low, high - 1, count) for low, high, count in zip(edges, edges[1:], counts, strict=False)]
    while rows and not rows[0][2]:
        rows.pop(0)
    return rows


def describe(inspection: Inspection) -> str:
    """The inspection as a page of text."""
    part = f" (of {inspection.tokens_read:,} tokens read)" if inspection.tokens_read < inspection.tokens else ""
    sizes = ", ".join(
        f"{name} {values['tokens']:,} in {counted(values['documents'], 'document')}"
        for name, values in inspection.splits.items()
    )
    most = max(count for _, _, count in inspection.histogram)
    lines = [
        inspection.dataset,
        f"{counted(inspection.documents, 'document')}, {counted(inspection.tokens, 'token')} ({inspection.tokenizer}): "
        f"{sizes}; {counted(inspection.shards, 'shard file')}",
        f"{inspection.bytes_per_token:.2f} bytes per token",
        *(
            [f"left out: {', '.join(f'{n:,} {why}' for why, n in inspection.dropped.items())}"]
            if inspection.dropped
            else []
        ),
        "",
        "share of each corpus",
        *(f"  {share:6.1%}  {name}" for name, share in inspection.corpora.items()),
        "",
        f"tokens per document{part}",
        "  " + "   ".join(f"{name} {value:,}" for name, value in inspection.lengths.items()),
        *(
            f"  {low:>11,} – {high:<11,} {'█' * max(1, round(40 * n / most)) if n else ''} {n:,}"
            for low, high, n in inspection.histogram
        ),
        "",
        f"most frequent tokens{part}",
        "  " + "  ".join(f"{text!r} {share:.1%}" for text, share in inspection.frequent),
        "",
        "documents begin",
        *(f"  {identity}: {text!r}" for identity, text in inspection.excerpts),
    ]
    return "\n".join(lines)
