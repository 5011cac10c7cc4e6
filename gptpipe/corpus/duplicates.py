"""Which documents are exact copies of others: found by SHA-256 over all corpora, before anything is tokenized.

The copy with the smallest document id (path, then position in the file; then the corpus given first) survives.
Every bucket's digests are kept in the dataset, so that what did not change is not read again the next time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.corpus.cuts import safe_places
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.plan import Bucket
from gptpipe.corpus.records import read_records
from gptpipe.corpus.text import TextFacts, read_text
from gptpipe.dataset.left_out import LeftOut
from gptpipe.tokenizer import get_tokenizer

DIGESTS = "digests"
AT_ONCE = 20_000_000  # documents whose digests are compared at once
_SCHEMA = pa.schema([("path", pa.string()), ("position", pa.int64()), ("sha256", pa.binary(32))])

Duplicates = dict[str, dict[str, list[int]]]  # a bucket's hash → path → positions of its copies


@dataclass(frozen=True)
class DigestTask:
    """All that a worker needs to hash the documents of one bucket.

    Attributes:
        dataset: URL of the dataset's folder.
        facts: of a text that is read in ranges; its first range stands for the whole.
        earlier: URL of a dataset that has this bucket's digests.
    """

    bucket: Bucket
    dataset: str
    tokenizer: str
    options: ReadOptions
    facts: TextFacts | None = None
    earlier: str = ""

    @property
    def size(self) -> int:
        return self.bucket.size


@dataclass(frozen=True)
class DigestReport:
    """A bucket's digests are written: how many documents it has."""

    bucket: str
    documents: int


def digests_url(dataset: str, bucket: str) -> str:
    return storage.join(dataset, DIGESTS, f"{bucket}.parquet")


def write_digests(task: DigestTask) -> DigestReport:
    """Hash every document of a bucket, or take the digests from an earlier dataset."""
    target = digests_url(task.dataset, task.bucket.hash)
    for known in (target, digests_url(task.earlier, task.bucket.hash) if task.earlier else target):
        if (table := _read(known)) is not None:
            if known != target:
                storage.copy(known, target)
            return DigestReport(task.bucket.hash, table.num_rows)
    rows = [dict(zip(_SCHEMA.names, row, strict=True)) for row in _digests(task)]
    table = pa.Table.from_pylist(rows, _SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(target, sink.getvalue().to_pybytes())
    return DigestReport(task.bucket.hash, len(rows))


def _digests(task: DigestTask) -> Iterator[tuple[str, int, bytes]]:
    bucket = task.bucket
    safe = safe_places(get_tokenizer(task.tokenizer))
    for source in bucket.sources:
        if source.kind == "text":
            facts = task.facts or read_text(source, safe, task.options)[0]
            if not facts.left_out and bucket.start == 0:
                yield source.path, 0, bytes.fromhex(facts.sha256)
            continue
        for record in read_records(source, task.options, LeftOut(), bucket.start, bucket.stop):
            yield source.path, record.position, hashlib.sha256(record.text.encode()).digest()


def _read(url: str) -> pa.Table | None:
    try:
        table = pq.read_table(
            pa.BufferReader(storage.read_bytes(url)), page_checksum_verification=True, read_dictionary=["path"]
        )
    except (OSError, pa.ArrowException, ValueError):
        return None  # gone or damaged: it is made again
    path = pa.field("path", pa.dictionary(pa.int32(), pa.string()))
    # no checksum guards the schema: a flipped byte would make other types of the columns
    return table.combine_chunks() if table.schema.equals(_SCHEMA.set(0, path)) else None


def find_duplicates(buckets: list[Bucket], dataset: str, documents: int) -> Duplicates:
    """The copies in every bucket, from the digests that are written.

    So that any number of documents fits into memory, only those whose digests fall into one share of all values
    are compared at once.
    """
    shares = max(1, -(-documents // AT_ONCE))
    duplicates: Duplicates = {}
    for share in range(shares):
        copies = _Copies(buckets)
        for number, bucket in enumerate(buckets):
            table = _read(digests_url(dataset, bucket.hash))
            assert table is not None  # this run wrote it
            copies.add(number, table, share, shares)
        copies.mark(duplicates)
    return duplicates


class _Copies:
    """Documents of all buckets whose digests are compared with one another."""

    def __init__(self, buckets: list[Bucket]) -> None:
        self._buckets = buckets
        self._corpora = list(dict.fromkeys(bucket.corpus for bucket in buckets))
        self._digests: list[np.ndarray] = []
        self._rows: list[tuple[int, pa.Table]] = []  # bucket and the paths and positions of its documents

    def add(self, bucket: int, table: pa.Table, share: int, shares: int) -> None:
        if not table.num_rows:
            return
        column = table.column("sha256").chunk(0)
        digests = np.frombuffer(column.buffers()[1], dtype="S32")[column.offset : column.offset + len(column)]
        leading = digests.view(">u8")[::4]
        keep = np.flatnonzero(leading % np.uint64(shares) == share)
        self._digests.append(digests[keep])
        self._rows.append((bucket, table.select(["path", "position"]).take(keep)))

    def mark(self, duplicates: Duplicates) -> None:
        """Note every document but the one with the smallest id of those that say the same."""
        if not self._digests:
            return
        _, group, sizes = np.unique(np.concatenate(self._digests), return_inverse=True, return_counts=True)
        starts = np.cumsum([0, *(len(digests) for digests in self._digests)])
        same: dict[int, list[tuple[str, int, int, int]]] = {}
        for place in np.flatnonzero(sizes[group] > 1):
            part = int(np.searchsorted(starts, place, side="right")) - 1
            bucket, table = self._rows[part]
            row = int(place - starts[part])
            path, position = table.column("path")[row].as_py(), table.column("position")[row].as_py()
            corpus = self._corpora.index(self._buckets[bucket].corpus)
            same.setdefault(int(group[place]), []).append((path, position, corpus, bucket))
        for members in same.values():
            for path, position, _, bucket in sorted(members)[1:]:
                duplicates.setdefault(self._buckets[bucket].hash, {}).setdefault(path, []).append(position)
        for paths in duplicates.values():
            for positions in paths.values():
                positions.sort()
