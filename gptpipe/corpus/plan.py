"""Which shard holds what, and so the dataset's id, before a token is made.

Everything here is a pure function of the options and of every source's relative path, size and content.
Small files of a corpus are put into buckets by the leading bits of a hash of their path; a bucket with too much
text is split by one more bit. So one file added changes one bucket (or splits one in two) and no other. A larger
file has shards of its own: one a range of bytes, or of Parquet's row groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from gptpipe import storage
from gptpipe.config import DataConfig, digest
from gptpipe.corpus.cuts import CELL, PIECE_TOKENS
from gptpipe.corpus.fingerprints import Fingerprints, fingerprint
from gptpipe.corpus.parquet import open_parquet
from gptpipe.corpus.sources import Source
from gptpipe.corpus.split import BY_HASH, BY_POSITION, hash_limit, split_rule
from gptpipe.corpus.text import TextFacts
from gptpipe.dataset.dataset import FORMAT_VERSION
from gptpipe.tokenizer import Tokenizer, get_tokenizer, reference_to


@dataclass(frozen=True)
class Bucket:
    """The sources that go into one shard, or the range of one large source.

    Attributes:
        hash: of the sources' paths and contents, the range, and the options that decide what a document is.
        start, stop: bytes of a text or JSONL file, row groups of a Parquet file; `stop` None is the end.
    """

    corpus: str
    hash: str
    sources: tuple[Source, ...]
    start: int = 0
    stop: int | None = None

    @property
    def size(self) -> int:
        """Bytes to read, roughly: what a task is weighed by."""
        whole = sum(source.size for source in self.sources)
        if not self.is_range or self.sources[0].kind == "parquet":
            return whole
        return (whole if self.stop is None else self.stop) - self.start

    @property
    def is_range(self) -> bool:
        return self.start > 0 or self.stop is not None


@dataclass(frozen=True)
class ShardPlan:
    """A bucket and what is left out of it because it is elsewhere. The hash names the shard's files.

    A shard makes up to two files, `train/<hash>.parquet` and `validation/<hash>.parquet`.

    Attributes:
        duplicates: path → positions of the documents that are copies of others.
        facts: of a text that is read in ranges.
    """

    bucket: Bucket
    hash: str
    duplicates: dict[str, list[int]] = field(default_factory=dict)
    facts: TextFacts | None = None

    @property
    def corpus(self) -> str:
        return self.bucket.corpus

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.bucket.sources

    @property
    def size(self) -> int:
        return self.bucket.size


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset that is to be there: its id, its place, and all its sources."""

    id: str
    url: str
    options: dict[str, object]
    tokenizer: dict[str, object]
    sources: tuple[Source, ...]
    empty_sources: dict[str, int]  # a corpus's name → files of it that hold nothing

    @property
    def tokenizer_reference(self) -> str:
        """What finds the tokenizer wherever the dataset is seen; its files, if it came in files, lie there first."""
        return reference_to(str(self.tokenizer["name"]), self.url)

    @property
    def by_position(self) -> bool:
        return self.options["split"] == BY_POSITION

    @property
    def below(self) -> float:
        """Fraction of all hashes below which a text is kept for validation."""
        return float(str(self.options.get("validation_below", self.options["validation"])))

    @property
    def base(self) -> dict[str, object]:
        """What every shard's hash begins with."""
        return {"format": FORMAT_VERSION, "tokenizer": self.tokenizer, "options": self.options}


def identify(
    config: DataConfig,
    out: str,
    listed: list[Source],
    known: Fingerprints,
    known_split: Callable[[Source], str] = lambda source: "",
    *,
    few: bool = False,
) -> DatasetPlan:
    """Hash the sources that changed since the last time, and give the dataset its id.

    Args:
        out: folder or URL below which the dataset's own folder `<id>/` lies.
        known_split: how an earlier dataset split the only source there is; empty if none did.
        few: whether so few documents are there that one split may be empty: then they are read.

    Raises:
        UserError: a source cannot be read.
    """
    tokenizer = get_tokenizer(config.tokenizer)
    empty = {name: sum(1 for _ in group) for name, group in groupby((s for s in listed if not s.size), key=_corpus)}
    sources = fingerprint([source for source in listed if source.size], known)
    split = split_rule(config, sources, known_split)
    below = hash_limit(config, sources) if few and split == BY_HASH else config.validation
    options = content_options(config, split, below)
    described = describe_tokenizer(tokenizer)
    everything = [[source.corpus, source.path, source.sha256, source.errors] for source in sources]
    base = {"format": FORMAT_VERSION, "tokenizer": described, "options": options}
    identity = digest({**base, "sources": everything, "empty": empty})
    url = storage.join(storage.normalize(out), identity)
    return DatasetPlan(identity, url, options, described, tuple(sources), empty)


def _corpus(source: Source) -> str:
    return source.corpus


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, object]:
    return {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256}


def content_options(config: DataConfig, split: str, below: float) -> dict[str, object]:
    """The options that decide what the dataset holds. Cleaning is named only where it is asked for.

    Args:
        below: fraction of all hashes below which a text is kept for validation; named where it is not the share.
    """
    cleaning = {
        name: getattr(config, name)
        for name in ("on_error", "drop_duplicates", "min_bytes", "max_bytes", "nfc")
        if getattr(config, name) != DataConfig.model_fields[name].default
    }
    return {
        "validation": config.validation,
        "split": split,
        **({"validation_below": below} if below != config.validation else {}),
        "text_field": config.text_field,
        "shard_megabytes": config.shard_megabytes,
        "cell_bytes": CELL,
        "part_tokens": PIECE_TOKENS,
        **cleaning,
    }


def plan_buckets(planned: DatasetPlan, shard_megabytes: int) -> Iterator[Bucket]:
    """All buckets, in the order of the dataset."""
    limit = shard_megabytes * 1_000_000
    for corpus, group in groupby(planned.sources, key=_corpus):
        for sources in split_into_buckets(list(group), limit):
            members = [[source.path, source.sha256, source.errors] for source in sources]
            described = {**planned.base, "corpus": corpus, "sources": members}
            ranges = list(_ranges(sources[0], limit, planned.by_position)) if len(sources) == 1 else []
            if len(ranges) < 2:
                yield Bucket(corpus, digest(described), tuple(sources))
                continue
            for start, stop in ranges:
                yield Bucket(corpus, digest({**described, "range": [start, stop]}), tuple(sources), start, stop)


def _ranges(source: Source, limit: int, by_position: bool) -> Iterator[tuple[int, int | None]]:
    """The ranges in which a large source is read; one or none when it is read whole."""
    if source.size <= limit or not source.can_be_cut or (by_position and source.kind != "text"):
        return
    if source.kind != "parquet":
        step = max(1, limit // CELL) * CELL
        for start in range(0, source.size, step):
            yield start, start + step if start + step < source.size else None
        return
    with open_parquet(source) as file:
        first, size = 0, 0
        for group in range(file.num_row_groups):
            size += file.metadata.row_group(group).total_byte_size
            if size >= limit:
                yield first, group + 1
                first, size = group + 1, 0
        if first < file.num_row_groups:
            yield first, file.num_row_groups


def finish_plan(
    planned: DatasetPlan, bucket: Bucket, duplicates: dict[str, list[int]], facts: TextFacts | None = None
) -> ShardPlan:
    """A bucket's shard, now that it is known which of its documents are copies."""
    if not duplicates:
        return ShardPlan(bucket, bucket.hash, {}, facts)
    return ShardPlan(bucket, digest({**planned.base, "bucket": bucket.hash, "without": duplicates}), duplicates, facts)


def split_into_buckets(sources: list[Source], limit: int) -> Iterator[list[Source]]:
    """Small sources by the leading bits of their path's hash, each larger one alone.

    A bucket over its limit is split by one more bit. The limit grows by the size of the largest small source
    with every bit, so that what one source pushes over the limit falls into two buckets within theirs: a source
    added never makes more than two buckets again.

    Args:
        limit: bytes that the first bucket holds.
    """
    small = limit // 8
    keyed = [
        (int.from_bytes(hashlib.sha256(source.path.encode("utf-8")).digest()), source)
        for source in sources
        if source.size <= small
    ]

    def visit(items: list[tuple[int, Source]], depth: int) -> Iterator[list[Source]]:
        if not items:
            return
        if len(items) == 1 or depth == 256 or sum(source.size for _, source in items) <= limit + depth * small:
            yield sorted((source for _, source in items), key=lambda source: source.path)
            return
        bit = 255 - depth
        yield from visit([item for item in items if not item[0] >> bit & 1], depth + 1)
        yield from visit([item for item in items if item[0] >> bit & 1], depth + 1)

    yield from visit(keyed, 0)
    yield from ([source] for source in sorted(sources, key=lambda source: source.path) if source.size > small)
