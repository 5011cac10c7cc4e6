"""The Parquet files of a shard: rows in, in groups of about a million tokens, and out again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.dataset.left_out import LeftOut
from gptpipe.dataset.pages import column_pages
from gptpipe.tokenizer import Tokenizer

SPLITS = ("train", "validation")
ROW_GROUP_TOKENS = 1_000_000
_NOTE_KEY = b"gptpipe.shard"
_ZSTD_LEVEL = 3
PAGE_BYTES, BATCH_ROWS = 1 << 20, 1 << 16  # a page that stays in a core's cache while it is decoded
_HASH_BLOCK = 1 << 20
_LONG_DOCUMENT = 100  # tokens
DAMAGED = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Row:
    """A part of a document. `part` grows along the document; numbers may be left out."""

    document_id: str
    part: int
    last: bool
    tokens: np.ndarray  # (n,), uint16 or uint32
    bytes: int  # UTF-8 length of the part

    @property
    def path(self) -> str:
        return self.document_id.rsplit("#", 1)[0]

    @property
    def position(self) -> int:
        return int(self.document_id.rsplit("#", 1)[1])


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file of a shard, as the index lists it."""

    corpus: str
    split: str
    path: str  # relative to the dataset
    rows: int
    documents: int  # rows with `last`; each is followed by a separator when it is read
    tokens: int  # separators not counted
    bytes: int
    row_group_offsets: np.ndarray  # (row groups,), place of each one's first token in the file, separators counted
    hash: str
    size: int
    sha256: str


@dataclass
class Note:
    """What a shard's files say of the shard, so that a run that was killed need not make it again."""

    left_out: dict[str, LeftOut]
    splits: list[str] = field(default_factory=list)

    def encode(self) -> str:
        left_out = {path: left.as_dict() for path, left in sorted(self.left_out.items())}
        return json.dumps({"left_out": left_out, "splits": self.splits}, sort_keys=True)

    @classmethod
    def decode(cls, data: bytes) -> Note:
        values = json.loads(data)
        return cls({path: LeftOut.from_dict(left) for path, left in values["left_out"].items()}, values["splits"])


def _schema(tokenizer: Tokenizer) -> pa.Schema:
    token = pa.uint16() if tokenizer.dtype is np.uint16 else pa.uint32()
    return pa.schema(
        [
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("part", pa.int32(), nullable=False),
            pa.field("last", pa.bool_(), nullable=False),
            pa.field("tokens", pa.list_(pa.field("element", token, nullable=False)), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),
        ]
    )


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    offsets = np.concatenate([[0], np.cumsum([len(row.tokens) for row in rows])]).astype(np.int32)
    values = pa.array(np.concatenate([row.tokens for row in rows]))
    columns = [
        pa.array([row.document_id for row in rows], schema.field("document_id").type),
        pa.array([row.part for row in rows], schema.field("part").type),
        pa.array([row.last for row in rows], schema.field("last").type),
        pa.ListArray.from_arrays(pa.array(offsets), values, type=schema.field("tokens").type),
        pa.array([row.bytes for row in rows], schema.field("bytes").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


class _Tally:
    """The totals of one file, row by row, and where its row groups begin."""

    def __init__(self) -> None:
        self.rows = self.documents = self.tokens = self.bytes = 0
        self.offsets: list[int] = []

    def begin_group(self) -> None:
        self.offsets.append(self.tokens + self.documents)

    def add(self, row: Row) -> None:
        self.rows += 1
        self.documents += row.last
        self.tokens += len(row.tokens)
        self.bytes += row.bytes

    def describe(self, corpus: str, split: str, shard: str, size: int, sha256: str) -> ShardFile:
        return ShardFile(
            corpus=corpus,
            split=split,
            path=shard_path(split, shard),
            rows=self.rows,
            documents=self.documents,
            tokens=self.tokens,
            bytes=self.bytes,
            row_group_offsets=np.array(self.offsets, dtype=np.int64),
            hash=shard,
            size=size,
            sha256=sha256,
        )


def shard_path(split: str, shard: str) -> str:
    return f"{split}/{shard}.parquet"


class _SplitWriter:
    """The file of one split of a shard, under a temporary name."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.tally = path, _Tally()
        self._schema = schema
        self._group: list[Row] = []
        self._tokens = 0
        self._sink = pa.OSFile(str(path), "wb")
        try:
            # the level and encoding that were best of those measured, see tests/benchmarks/RESULTS.md
            self._writer = pq.ParquetWriter(
                self._sink,
                schema,
                compression="zstd",
                compression_level=_ZSTD_LEVEL,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
                write_batch_size=BATCH_ROWS,
                data_page_size=PAGE_BYTES,
                data_page_version="1.0",  # the one that gptpipe.dataset.pages reads
            )
        except DAMAGED:  # its first bytes may find the disk full
            self._sink.close()
            raise

    def add(self, row: Row) -> None:
        if self._group and self._tokens + len(row.tokens) > ROW_GROUP_TOKENS:
            self._flush()
        if not self._group:
            self.tally.begin_group()
        self._group.append(row)
        self._tokens += len(row.tokens)
        self.tally.add(row)

    def _flush(self) -> None:
        self._writer.write_table(_table(self._group, self._schema))
        self._group, self._tokens = [], 0

    def close(self, note: str) -> None:
        if self._group:
            self._flush()
        self._writer.add_key_value_metadata({_NOTE_KEY: note})
        self._writer.close()
        self._sink.close()

    def abandon(self) -> None:
        """Let go of the file, whatever state it is in."""
        with suppress(*DAMAGED):
            self._writer.close()
        with suppress(*DAMAGED):
            self._sink.close()


class ShardWriter:
    """Writes a shard's rows as they come; nothing is seen in the dataset before `commit`."""

    def __init__(self, dataset: str, corpus: str, shard: str, tokenizer: Tokenizer) -> None:
        self._dataset, self._corpus, self._shard = dataset, corpus, shard
        self._schema = _schema(tokenizer)
        self._files: dict[str, _SplitWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> ShardWriter:
        self._folder = Path(self._stack.enter_context(storage.scratch_folder(self._dataset)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.abandon()
        self._stack.close()

    def add(self, split: str, row: Row) -> None:
        with storage.explained(self._dataset):
            if split not in self._files:
                self._files[split] = _SplitWriter(self._folder / f"{split}.parquet", self._schema)
            self._files[split].add(row)

    def commit(self, note: Note) -> list[ShardFile]:
        """Put the files in their place, each whole."""
        note.splits = [split for split in SPLITS if split in self._files]
        described = []
        for split in note.splits:
            file = self._files[split]
            with storage.explained(self._dataset):
                file.close(note.encode())
                size, sha256 = file.path.stat().st_size, _sha256_of(file.path)
            described.append(file.tally.describe(self._corpus, split, self._shard, size, sha256))
        for split, listed in zip(note.splits, described, strict=True):
            storage.move_file(self._files[split].path, storage.join(self._dataset, listed.path))
        self._files.clear()
        return described


def _sha256_of(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            state.update(block)
    return state.hexdigest()


class ShardReader:
    """A shard file that is in memory. Rows are checked against their pages' CRC; a stream is not."""

    def __init__(self, content: bytes) -> None:
        self._file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        self._content = memoryview(content)
        self._columns = {self._file.schema.column(i).path.split(".")[0]: i for i in range(len(self._file.schema))}

    @property
    def row_groups(self) -> int:
        return int(self._file.num_row_groups)

    def note(self) -> Note:
        return Note.decode(self._file.metadata.metadata[_NOTE_KEY])

    def rows(self) -> Iterator[Row]:
        for index in range(self.row_groups):
            yield from self.group(index)

    def group(self, index: int) -> Iterator[Row]:
        table = self._file.read_row_group(index, use_threads=False)
        for batch in table.to_batches():
            tokens = batch.column("tokens")
            values, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            columns = [batch.column(name).to_pylist() for name in ("document_id", "part", "last", "bytes")]
            for i, (identity, part, last, size) in enumerate(zip(*columns, strict=True)):
                yield Row(identity, part, last, values[offsets[i] : offsets[i + 1]], size)

    def stream(self, index: int, separator: int, out: np.ndarray) -> np.ndarray:
        """A row group's tokens with `separator` after every document, of content that is known to be whole.

        Args:
            out: at least as long as the row group is; filled from its beginning.

        Returns:
            What was filled of `out`, shape (n,).
        """
        values: list[np.ndarray] = []
        begins: list[np.ndarray] = []
        count = 0
        for page in column_pages(self._chunk(index, "tokens"), nested=True):
            begins.append(page.rows - np.searchsorted(page.empty, page.rows) + count)
            values.append(np.frombuffer(page.values, "<i4"))
            count += len(values[-1])
        last = np.concatenate(
            [
                np.unpackbits(np.frombuffer(page.values, np.uint8), count=page.slots, bitorder="little")
                for page in column_pages(self._chunk(index, "last"), nested=False)
            ]
        )
        ends = np.append(np.concatenate(begins)[1:], count)[last == 1]
        return _separated(values, ends, separator, out[: count + len(ends)])

    def _chunk(self, index: int, name: str) -> memoryview:
        column = self._file.metadata.row_group(index).column(self._columns[name])
        return self._content[column.data_page_offset :][: column.total_compressed_size]

    def describe(self, corpus: str, split: str, shard: str, size: int, sha256: str) -> ShardFile:
        """The file as the index lists it, counted from its rows."""
        tally = _Tally()
        for index in range(self.row_groups):
            tally.begin_group()
            for row in self.group(index):
                tally.add(row)
        return tally.describe(corpus, split, shard, size, sha256)


def _separated(values: list[np.ndarray], ends: np.ndarray, separator: int, out: np.ndarray) -> np.ndarray:
    """`out`, filled with the values one after another and `separator` at every one of `ends`."""
    if len(out) < _LONG_DOCUMENT * len(ends):
        spots = ends + np.arange(len(ends))
        is_token = np.ones(len(out), bool)
        is_token[spots] = False
        out[spots] = separator
        out[is_token] = np.concatenate(values)
        return out
    waiting, begin, place = ends.tolist()[::-1], 0, 0  # copying slices is several times faster on long documents
    for part in values:
        done = 0
        while waiting and waiting[-1] - begin <= len(part):
            stop = waiting.pop() - begin
            out[place : place + stop - done] = part[done:stop]
            place += stop - done + 1
            out[place - 1] = separator
            done = stop
        out[place : place + len(part) - done] = part[done:]
        place += len(part) - done
        begin += len(part)
    return out
