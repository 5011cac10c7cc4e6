"""The index of a dataset: its shard files in their order, held as columns so that 300,000 of them are little."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe.dataset.rows import ShardFile
from gptpipe.errors import Damaged

_SCHEMA = pa.schema(
    [
        ("corpus", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("documents", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("row_group_offsets", pa.list_(pa.int64())),
        ("hash", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
    ]
)
_REPEATING = ["corpus", "split"]
_PATH, _SHA256 = re.compile(r"(?:train|validation)/[0-9A-Za-z_-]+\.parquet"), re.compile(r"[0-9a-f]{64}")
_OFFSETS = "row_group_offsets"
_ROWS = 8192  # of a row group of the index: what is decoded to look at one file's row groups


def index_table(files: list[ShardFile]) -> bytes:
    """The index file of these shards."""
    offsets = [file.row_group_offsets for file in files]
    ends = np.concatenate([[0], np.cumsum([len(part) for part in offsets])]).astype(np.int32)
    columns = {
        field.name: pa.array([getattr(file, field.name) for file in files], field.type)
        for field in _SCHEMA
        if field.name != "row_group_offsets"
    }
    columns["row_group_offsets"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(offsets)))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([columns[field.name] for field in _SCHEMA], _SCHEMA),
        sink,
        compression="zstd",
        row_group_size=_ROWS,
        use_dictionary=_REPEATING,
        column_encoding={"row_group_offsets.list.element": "DELTA_BINARY_PACKED"},
    )
    return bytes(sink.getvalue().to_pybytes())


class _Pieces:
    """The index file, decoded a row group at a time: whole, its texts and lists are large and seldom needed."""

    def __init__(self, content: bytes) -> None:
        self._file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=_REPEATING)
        self._last: tuple[int, pa.Table] | None = None
        self._lock = threading.Lock()

    def column(self, name: str) -> pa.Array:
        """One whole column: reading several together holds more at once."""
        with self._lock:
            column = self._file.read([name], use_threads=False).unify_dictionaries().combine_chunks()[0]
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def row(self, number: int) -> dict[str, pa.Scalar]:
        group = number // _ROWS
        with self._lock:
            if self._last is None or self._last[0] != group:
                self._last = group, self._file.read_row_group(group, use_threads=False)
            table = self._last[1]
        return {name: table.column(name)[number % _ROWS] for name in _SCHEMA.names}


@dataclass(frozen=True)
class ShardIndex:
    """Shard files in their order; a row is made into a `ShardFile` only when it is looked at.

    Attributes:
        pieces: the whole index.
        rows: where each of these files is in it, shape (files,).
        splits_of, corpora_of: the split and the corpus of each file, dictionary-encoded.
        sizes: bytes of each file. bytes_of: UTF-8 bytes of the text in it, shape (files,).
        stream_lengths: tokens of each file in the stream, separators counted, shape (files,).
    """

    pieces: _Pieces
    rows: np.ndarray
    splits_of: pa.DictionaryArray
    corpora_of: pa.DictionaryArray
    sizes: np.ndarray
    bytes_of: np.ndarray
    stream_lengths: np.ndarray

    @classmethod
    def read(cls, content: bytes) -> ShardIndex:
        pieces = _Pieces(content)
        tokens, documents, size, text = (
            pieces.column(name).to_numpy() for name in ("tokens", "documents", "size", "bytes")
        )
        split, corpus = pieces.column("split"), pieces.column("corpus")
        return cls(pieces, np.arange(len(tokens)), split, corpus, size, text, tokens + documents)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> ShardFile:
        row = self.pieces.row(int(self.rows[number]))
        offsets = row.pop(_OFFSETS).values.to_numpy()
        file = ShardFile(row_group_offsets=offsets, **{name: value.as_py() for name, value in row.items()})
        _check_names([file.path], [file.sha256])
        return file

    def __iter__(self) -> Iterator[ShardFile]:
        return (self[number] for number in range(len(self)))

    def select(self, split: str | None = None, corpus: str | None = None) -> ShardIndex:
        """The shards of a split and of a corpus, in their order."""
        keep = np.ones(len(self), dtype=bool)
        for column, name in ((self.splits_of, split), (self.corpora_of, corpus)):
            if name is not None:
                names = column.dictionary.to_pylist()
                keep &= _codes(column) == (names.index(name) if name in names else -1)
        if keep.all():
            return self
        mask = pa.array(keep)
        return ShardIndex(
            self.pieces,
            self.rows[keep],
            self.splits_of.filter(mask),
            self.corpora_of.filter(mask),
            self.sizes[keep],
            self.bytes_of[keep],
            self.stream_lengths[keep],
        )

    def by_hash(self) -> dict[str, list[ShardFile]]:
        """The files of every shard, by its hash."""
        files: dict[str, list[ShardFile]] = {}
        for file in self:
            files.setdefault(file.hash, []).append(file)
        return files

    def splits(self) -> list[str]:
        return sorted(str(name) for name in self.splits_of.unique().to_pylist())

    def corpora(self) -> list[str]:
        """Names in the order of the dataset."""
        return [str(name) for name in self.corpora_of.unique().to_pylist()]

    def paths(self) -> list[str]:
        paths = [str(path) for path in self.pieces.column("path").take(pa.array(self.rows)).to_pylist()]
        _check_names(paths, [])
        return paths

    def digests(self) -> list[str]:
        digests = [str(sha256) for sha256 in self.pieces.column("sha256").take(pa.array(self.rows)).to_pylist()]
        _check_names([], digests)
        return digests

    @property
    def bytes(self) -> int:
        return int(self.bytes_of.sum())

    def corpus_codes(self) -> np.ndarray:
        """The number of each file's corpus in `corpora()`, shape (files,)."""
        numbers = {name: number for number, name in enumerate(self.corpora())}
        of_code = np.array([numbers.get(name, -1) for name in self.corpora_of.dictionary.to_pylist()], dtype=np.int64)
        codes: np.ndarray = of_code[_codes(self.corpora_of)]
        return codes


def _check_names(paths: list[str], digests: list[str]) -> None:
    """A Damaged for what would be read, made or removed elsewhere than in the dataset or the cache."""
    for pattern, names in ((_PATH, paths), (_SHA256, digests)):
        if strange := next((name for name in names if not pattern.fullmatch(name)), None):
            raise Damaged(f"the dataset's index names {strange!r}", hint="tokenize again into an empty folder")


def _codes(column: pa.DictionaryArray) -> np.ndarray:
    codes: np.ndarray = column.indices.to_numpy(zero_copy_only=False)
    return codes
