"""A token dataset that exists: its manifest, its index of shards, and what it promises."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Pydantic takes Python's own from 3.12 on

from gptpipe import storage
from gptpipe.dataset.index import ShardIndex
from gptpipe.errors import Damaged, UserError
from gptpipe.tokenizer import Tokenizer, get_tokenizer, reference_to

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "shards.parquet"
SOURCES = "sources.parquet"
LATEST = "latest.json"
ID = re.compile(r"[0-9a-f]{32}")  # of a dataset, and its folder's name
_AGAIN = "tokenize again: it is made again"


class _Split(TypedDict):
    documents: int
    tokens: int
    bytes: int
    shards: int


class _Corpus(TypedDict):
    sources: int
    dropped: dict[str, int]
    skipped: list[str]
    splits: dict[str, _Split]


class _Tokenizer(TypedDict):
    name: str
    sha256: str
    vocab_size: int


class _Manifest(TypedDict):
    """What of a manifest is read; it holds more."""

    id: str
    tokenizer: _Tokenizer
    options: dict[str, Any]
    corpora: dict[str, _Corpus]
    index_sha256: str
    sources_sha256: str


_MANIFEST: TypeAdapter[_Manifest] = TypeAdapter(_Manifest)


@dataclass(frozen=True)
class Dataset:
    """A committed dataset: `manifest` as written, at `url`."""

    url: str
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.manifest["id"])

    @property
    def tokenizer(self) -> dict[str, Any]:
        return dict(self.manifest["tokenizer"])

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.manifest["options"])

    @property
    def dropped(self) -> dict[str, int]:
        """Documents left out, by reason, over all corpora."""
        counts: dict[str, int] = {}
        for corpus in self.manifest["corpora"].values():
            for reason, count in corpus["dropped"].items():
                counts[reason] = counts.get(reason, 0) + count
        return counts

    def total(self, what: str, split: str | None = None) -> int:
        """Sum of documents, tokens, bytes or shards over corpora, in one split or in all."""
        return sum(
            values[what]
            for corpus in self.manifest["corpora"].values()
            for name, values in corpus["splits"].items()
            if split in (None, name)
        )

    @cached_property
    def _index(self) -> ShardIndex:
        index = ShardIndex.read(self._read_verified(INDEX, "index_sha256"))
        for name, corpus in self.manifest["corpora"].items():
            for split, totals in corpus["splits"].items():
                files = index.select(split, name)
                sums = len(files), int(files.bytes_of.sum()), int(files.stream_lengths.sum())
                if sums != (totals["shards"], totals["bytes"], totals["tokens"] + totals["documents"]):
                    message = f"damaged: what it says of the {split} split of {name!r} is not what the index holds"
                    raise Damaged(message, where=storage.join(self.url, MANIFEST), hint=_AGAIN)
        return index

    def index(self, split: str | None = None) -> ShardIndex:
        """The shards' files in their order, of one split or of all."""
        return self._index if split is None else self._index.select(split)

    def sources(self) -> dict[tuple[str, str, str, str], str]:
        """(corpus, path, SHA-256, treatment of errors) of every source → the hash of the shard that holds it."""
        content = self._read_verified(SOURCES, "sources_sha256")
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
        return {(row["corpus"], row["path"], row["sha256"], row["errors"]): row["hash"] for row in rows}

    def check_records(self) -> None:
        """Hold the index and the list of sources against the manifest.

        Raises:
            Damaged: one of them is not what was written.
        """
        self.index()
        self._read_verified(SOURCES, "sources_sha256")

    def _read_verified(self, name: str, digest_key: str) -> bytes:
        url = storage.join(self.url, name)
        try:
            content = storage.read_bytes(url)
        except FileNotFoundError:
            raise Damaged("missing from the dataset", where=url, hint=_AGAIN) from None
        if hashlib.sha256(content).hexdigest() != self.manifest[digest_key]:
            raise Damaged("damaged: its SHA-256 is not the one in the manifest", where=url, hint=_AGAIN)
        return content

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that made the dataset; a UserError when the one of that name here is another."""
        own = self.tokenizer
        tokenizer = get_tokenizer(reference_to(own["name"], self.url))
        if (tokenizer.sha256, tokenizer.vocab_size) != (own["sha256"], own["vocab_size"]):
            raise UserError(
                f"was made with another tokenizer {own['name']!r} than the one here",
                where=self.url,
                hint="tokenize again",
            )
        return tokenizer


def open_dataset(url: str) -> Dataset:
    """The dataset in a folder, or the one that was made last below it.

    Raises:
        UserError: there is none, or it was written by a newer version.
    """
    url = storage.normalize(url)
    manifest = _read_manifest(url)
    if manifest is None:
        try:
            pointer = storage.read_json(storage.join(url, LATEST))
        except FileNotFoundError:
            unfinished = (
                "its manifest is missing, so it was never finished" if storage.list_files(url) else "nothing there"
            )
            raise UserError(f"no dataset: {unfinished}", where=url, hint="make one with `gptpipe tokenize`") from None
        if not isinstance(identity := pointer.get("id"), str) or not ID.fullmatch(identity):
            hint = "name the dataset's own folder, or tokenize again"
            raise Damaged("names no dataset", where=storage.join(url, LATEST), hint=hint)
        url = storage.join(url, identity)
        manifest = _read_manifest(url)
        if manifest is None:
            raise UserError(
                "no dataset: its manifest is missing", where=url, hint="make it again with `gptpipe tokenize`"
            )
    if manifest.get("format") != FORMAT_VERSION:
        raise UserError(
            f"dataset format {manifest.get('format')}, this gptpipe reads {FORMAT_VERSION}",
            where=url,
            hint="use the gptpipe that wrote it, or tokenize again",
        )
    return Dataset(url, manifest)


def _read_manifest(url: str) -> dict[str, Any] | None:
    try:
        manifest = storage.read_json(storage.join(url, MANIFEST))
    except FileNotFoundError:
        return None
    if manifest.get("format") == FORMAT_VERSION:
        try:
            _MANIFEST.validate_python(manifest, strict=True)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise Damaged(
                f"not a dataset's manifest: {place}: {error.errors()[0]['msg']}",
                where=storage.join(url, MANIFEST),
                hint="give a dataset's folder, or tokenize again",
            ) from None
    return manifest
