"""One shard: documents of its sources in, up to two Parquet files (train, validation) out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.data.documents import Document, cut_text, read_documents
from gptpipe.data.plan import PART_TOKENS, ShardPlan, read_source
from gptpipe.tokenizer import Tokenizer, get_tokenizer

SPLITS = ("train", "validation")
ROW_GROUP_TOKENS = 1_000_000
_REPORT_KEY = b"gptpipe.shard"
_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Row:
    """A part of a document: at most `PART_TOKENS` tokens."""

    document_id: str
    part: int
    last: bool
    tokens: np.ndarray  # (n,), uint16 or uint32
    bytes: int  # UTF-8 length of the part

    @property
    def path(self) -> str:
        return self.document_id.rsplit("#", 1)[0]


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
    row_group_offsets: list[int]  # position of each row group's first token in the file, separators counted
    hash: str
    size: int
    sha256: str


Dropped = dict[str, dict[str, int]]  # a source's path → reason → documents left out


@dataclass
class ShardReport:
    """What a shard came to: its files, and what was left out."""

    hash: str
    files: list[ShardFile] = field(default_factory=list)
    dropped: Dropped = field(default_factory=dict)


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to make one shard.

    Attributes:
        plan: the shard.
        dataset: URL of the dataset's folder.
        earlier: URL of an earlier dataset that holds rows of unchanged sources of this shard.
        files: those of its files that hold them.
        unchanged: paths of those sources; the other sources are read.
        is_copy: the earlier dataset has this very shard: its files are linked or copied.
    """

    plan: ShardPlan
    dataset: str
    tokenizer: str
    text_field: str
    validation: float
    by_position: bool
    earlier: str = ""
    files: tuple[ShardFile, ...] = ()
    unchanged: frozenset[str] = frozenset()
    is_copy: bool = False


def make_shard(task: ShardTask) -> ShardReport:
    """Make one shard and return what it came to. Doing it again gives the same bytes.

    Raises:
        UserError: a source that cannot be read as text.
    """
    if task.is_copy and (report := copy_shard(task)) is not None:
        return report
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    dropped: Dropped = {}
    unchanged, old = _reuse(task, dropped)
    tokenizer = get_tokenizer(task.tokenizer)
    for source in task.plan.sources:
        if source.path in unchanged:
            for split in SPLITS:
                rows[split] += old[split].get(source.path, [])
            continue
        left_out: Counter[str] = Counter()
        for document in read_documents(source, read_source(source), task.text_field, left_out):
            if task.by_position:
                for split, start, piece in split_by_position(document.text, task.validation):
                    identity = f"{source.path}#{start}"
                    ends = start + len(piece.encode()) == len(document.text.encode())
                    rows[split] += document_rows(Document(identity, piece), tokenizer, ends=ends)
            else:
                rows[split_of(document.text, task.validation)] += document_rows(document, tokenizer)
        if left_out:
            dropped[source.path] = dict(left_out)
    return _write_shard(task, rows, dropped, tokenizer)


def split_of(text: str, validation: float) -> str:
    """train or validation, by a hash of the text: copies of a text are never on both sides."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    return "validation" if share < validation else "train"


def split_by_position(text: str, validation: float) -> Iterator[tuple[str, int, str]]:
    """The one document of a dataset: its first part trains, its last validates. Yields (split, byte, text)."""
    cut = int((1 - validation) * len(text))
    if text[:cut]:
        yield "train", 0, text[:cut]
    if text[cut:]:
        yield "validation", len(text[:cut].encode()), text[cut:]


def document_rows(document: Document, tokenizer: Tokenizer, *, ends: bool = True) -> list[Row]:
    """A document as rows; `ends` is whether a separator follows its last row."""
    parts: list[np.ndarray] = []
    for piece in cut_text(document.text):
        tokens = tokenizer.encode_array(piece)
        parts += [tokens[i : i + PART_TOKENS] for i in range(0, len(tokens), PART_TOKENS)]
    lengths = tokenizer.byte_lengths
    return [
        Row(document.id, part, ends and part == len(parts) - 1, tokens, int(lengths[tokens].sum()))
        for part, tokens in enumerate(parts)
    ]


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


def _row_groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        if group and size + len(row.tokens) > ROW_GROUP_TOKENS:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.tokens)
    if group:
        yield group


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


def _write_shard(task: ShardTask, rows: dict[str, list[Row]], dropped: Dropped, tokenizer: Tokenizer) -> ShardReport:
    """Write the shard's files, each with the report inside, so that a run that is killed need not make it again."""
    report = ShardReport(task.plan.hash, dropped=dropped)
    present = [split for split in SPLITS if rows[split]]
    note = json.dumps({"splits": present, "dropped": dropped}, sort_keys=True).encode()
    schema = _schema(tokenizer).with_metadata({_REPORT_KEY: note})
    contents: list[tuple[str, bytes]] = []
    for split in present:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            use_dictionary=False,
            write_statistics=False,
        ) as writer:
            for group in _row_groups(rows[split]):
                writer.write_table(_table(group, schema))
        contents.append((split, sink.getvalue().to_pybytes()))
    for split, content in contents:
        report.files.append(_describe(task.plan, split, rows[split], content))
        storage.write_bytes(storage.join(task.dataset, report.files[-1].path), content)
    return report


def _describe(plan: ShardPlan, split: str, rows: list[Row], content: bytes) -> ShardFile:
    offsets, position = [], 0
    for group in _row_groups(rows):
        offsets.append(position)
        position += sum(len(row.tokens) + row.last for row in group)
    return ShardFile(
        corpus=plan.corpus,
        split=split,
        path=f"{split}/{plan.hash}.parquet",
        rows=len(rows),
        documents=sum(row.last for row in rows),
        tokens=sum(len(row.tokens) for row in rows),
        bytes=sum(row.bytes for row in rows),
        row_group_offsets=offsets,
        hash=plan.hash,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def read_rows(content: bytes) -> Iterator[Row]:
    """The rows of a shard file."""
    file = pq.ParquetFile(pa.BufferReader(content))
    for index in range(file.num_row_groups):
        table = file.read_row_group(index).combine_chunks()
        tokens = table.column("tokens").chunk(0)
        values, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
        columns = [table.column(name).to_pylist() for name in ("document_id", "part", "last", "bytes")]
        for i, (identity, part, last, size) in enumerate(zip(*columns, strict=True)):
            yield Row(identity, part, last, values[offsets[i] : offsets[i + 1]], size)


def _read_note(content: bytes) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(pq.read_schema(pa.BufferReader(content)).metadata[_REPORT_KEY])
    return note


def _reuse(task: ShardTask, dropped: Dropped) -> tuple[frozenset[str], dict[str, dict[str, list[Row]]]]:
    """Unchanged sources, and their rows out of an earlier dataset's files, by split and source path.

    What was left out of these sources then is added to `dropped`. A file that is gone, or not what its index
    says, is not used: none of the sources counts as unchanged.
    """
    found: dict[str, dict[str, list[Row]]] = {split: {} for split in SPLITS}
    left_out: Dropped = {}
    for file in task.files:
        content = _read_verified(task.earlier, file)
        if content is None:
            return frozenset(), {split: {} for split in SPLITS}
        left_out |= {path: counts for path, counts in _read_note(content)["dropped"].items() if path in task.unchanged}
        for row in read_rows(content):
            if row.path in task.unchanged:
                found[file.split].setdefault(row.path, []).append(row)
    dropped |= left_out
    return task.unchanged, found


def _read_verified(dataset: str, file: ShardFile) -> bytes | None:
    try:
        content = storage.read_bytes(storage.join(dataset, file.path))
    except FileNotFoundError:
        return None
    return content if hashlib.sha256(content).hexdigest() == file.sha256 else None


def existing_shard(task: ShardTask) -> ShardReport | None:
    """The report of a shard that is already complete in the dataset's folder, or None."""
    return _read_report(task.plan, task.dataset)


def copy_shard(task: ShardTask) -> ShardReport | None:
    """Take a whole shard from an earlier dataset, or None when it is not all there as its index says."""
    contents = [_read_verified(task.earlier, file) for file in task.files]
    if not contents or None in contents:
        return None
    for file in task.files:
        storage.copy(storage.join(task.earlier, file.path), storage.join(task.dataset, file.path))
    dropped: Dropped = _read_note(contents[0] or b"")["dropped"]
    return ShardReport(task.plan.hash, files=list(task.files), dropped=dropped)


def _read_report(plan: ShardPlan, dataset: str) -> ShardReport | None:
    report: ShardReport | None = None
    expected = list(SPLITS)
    for split in SPLITS:
        if split not in expected:
            continue
        try:
            content = storage.read_bytes(storage.join(dataset, split, f"{plan.hash}.parquet"))
            note, rows = _read_note(content), list(read_rows(content))
        except FileNotFoundError:
            continue
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            return None  # damaged: it is made again
        expected = note["splits"]
        report = report or ShardReport(plan.hash, dropped=note["dropped"])
        report.files.append(_describe(plan, split, rows, content))
    if report is None or [file.split for file in report.files] != expected:
        return None
    return report
