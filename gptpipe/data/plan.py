"""Which shard holds what, and so the dataset's id, before a token is made.

Everything here is a pure function of the options and of every source's relative path, size and SHA-256.
Small files of a corpus are put into buckets by the leading bits of a hash of their path; a bucket with too much
text is split by one more bit. So one file added changes one bucket (or splits one in two) and no other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.config import DataConfig, digest
from gptpipe.data.documents import PIECE_CHARACTERS, read_documents
from gptpipe.data.sources import Source, list_sources
from gptpipe.errors import UserError
from gptpipe.tokenizer import Tokenizer, get_tokenizer

FORMAT_VERSION = 1
PART_TOKENS = 1_000_000  # a row of a shard holds at most this many tokens
BY_POSITION, BY_HASH = "position", "hash of text"
_FINGERPRINTS = ".fingerprints.parquet"
_HASH_BLOCK = 1 << 20
_READERS = 8  # threads that hash files: SHA-256 releases the interpreter lock


@dataclass(frozen=True)
class ShardPlan:
    """One bucket: the sources it holds and its logical hash, which names its files.

    A bucket makes up to two files, `train/<hash>.parquet` and `validation/<hash>.parquet`.
    """

    corpus: str
    hash: str
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        return sum(source.size for source in self.sources)


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset that is wanted: its id, its place and its shards."""

    id: str
    url: str
    options: dict[str, object]
    tokenizer: dict[str, object]
    shards: tuple[ShardPlan, ...]
    empty_sources: dict[str, int]  # a corpus's name → files of it that hold nothing


def make_plan(config: DataConfig, out: str, known_split: Callable[[Source], str] = lambda source: "") -> DatasetPlan:
    """List the sources, hash what changed since the last time, and decide shards and id.

    Args:
        out: folder or URL below which the dataset's own folder `<id>/` lies.
        known_split: how an earlier dataset split the only source there is; empty if none did.

    Raises:
        UserError: no file matches, a corpus is empty, a source cannot be read.
    """
    tokenizer = get_tokenizer(config.tokenizer)
    listed = list_sources(config)
    empty = {name: sum(1 for _ in group) for name, group in groupby((s for s in listed if not s.size), key=_corpus)}
    sources = fingerprint([source for source in listed if source.size], out)
    options = content_options(config, _split_rule(config, sources, known_split))
    described = describe_tokenizer(tokenizer)
    base = {"format": FORMAT_VERSION, "tokenizer": described, "options": options}
    shards = []
    for corpus, group in groupby(sources, key=_corpus):
        for bucket in split_into_buckets(list(group), config.shard_megabytes * 1_000_000):
            members = [[source.path, source.sha256, source.errors] for source in bucket]
            shards.append(ShardPlan(corpus, digest({**base, "corpus": corpus, "sources": members}), tuple(bucket)))
    everything = [[source.corpus, source.path, source.sha256, source.errors] for source in sources]
    identity = digest({**base, "sources": everything, "empty": empty})
    return DatasetPlan(
        identity, storage.join(storage.normalize(out), identity), options, described, tuple(shards), empty
    )


def _corpus(source: Source) -> str:
    return source.corpus


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, object]:
    return {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256}


def content_options(config: DataConfig, split: str) -> dict[str, object]:
    """The options that decide what the dataset holds."""
    return {
        "validation": config.validation,
        "split": split,
        "text_field": config.text_field,
        "shard_megabytes": config.shard_megabytes,
        "piece_characters": PIECE_CHARACTERS,
        "part_tokens": PART_TOKENS,
    }


def _split_rule(config: DataConfig, sources: list[Source], known_split: Callable[[Source], str]) -> str:
    """By position when there is one document, otherwise by a hash of each one's text."""
    if len(sources) != 1:
        return BY_HASH
    (source,) = sources
    if source.kind == "text":
        return BY_POSITION
    if known := known_split(source):
        return known
    documents = read_documents(source, read_source(source), config.text_field, Counter())
    return BY_POSITION if len(list(islice(documents, 2))) == 1 else BY_HASH


def split_into_buckets(sources: list[Source], limit: int) -> Iterator[list[Source]]:
    """Small sources by the leading bits of their path's hash, each larger one alone.

    A bucket over its limit is split by one more bit. The limit grows by the size of the largest small source
    with every bit, so that what one source pushes over the limit falls into two buckets within theirs: a source
    added never makes more than two buckets anew.

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


def read_source(source: Source) -> bytes:
    """The content of a source; a UserError when it is gone or is not what was planned."""
    try:
        content = storage.read_bytes(source.url)
    except FileNotFoundError:
        raise UserError(
            "the file is gone", where=source.url, hint="it was there when the run began; run again"
        ) from None
    if source.sha256 and hashlib.sha256(content).hexdigest() != source.sha256:
        raise UserError("the file changed while it was read", where=source.url, hint="run again when it is at rest")
    return content


def fingerprint(sources: list[Source], out: str) -> list[Source]:
    """The sources with their SHA-256, hashing only those that are new or changed since the last time here."""
    where = storage.join(storage.normalize(out), _FINGERPRINTS)
    known = _read_fingerprints(where)
    with ThreadPoolExecutor(_READERS) as pool:
        hashed = list(pool.map(lambda source: known.get(_state(source)) or _hash_source(source), sources))
    found = {_state(source): sha256 for source, sha256 in zip(sources, hashed, strict=True)}
    if not found.keys() <= known.keys():
        _write_fingerprints(where, {**known, **found})
    return [replace(source, sha256=sha256) for source, sha256 in zip(sources, hashed, strict=True)]


def _state(source: Source) -> tuple[str, int, str]:
    return source.url, source.size, source.version


def _hash_source(source: Source) -> str:
    state = hashlib.sha256()
    size = 0
    try:
        with storage.open_read(source.url) as stream:
            while block := stream.read(_HASH_BLOCK):
                size += len(block)
                state.update(block)
    except FileNotFoundError:
        raise UserError(
            "the file is gone", where=source.url, hint="it was there when the run began; run again"
        ) from None
    except PermissionError:
        raise UserError("the file may not be read", where=source.url, hint="check its permissions") from None
    if size != source.size:
        raise UserError("the file changed while it was read", where=source.url, hint="run again when it is at rest")
    return state.hexdigest()


def _read_fingerprints(url: str) -> dict[tuple[str, int, str], str]:
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(url)), page_checksum_verification=True)
        rows = zip(*(table.column(name).to_pylist() for name in ("url", "size", "version", "sha256")), strict=True)
        return {(url, size, version): sha256 for url, size, version, sha256 in rows if version}
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}  # it only spares work: a missing or damaged one costs a second hashing


def _write_fingerprints(url: str, known: dict[tuple[str, int, str], str]) -> None:
    newest = {key[0]: (key, sha256) for key, sha256 in known.items()}  # one state a file, the last one
    rows = [(*key, sha256) for key, sha256 in newest.values()]
    columns = list(zip(*rows, strict=True))
    table = pa.table(dict(zip(("url", "size", "version", "sha256"), map(list, columns), strict=True)))
    sink = pa.BufferOutputStream()
    # a flipped byte of a digest would pass for a file that changed
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(url, sink.getvalue().to_pybytes())
