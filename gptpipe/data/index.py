"""The index of a dataset: its shard files in their order, held as columns so that 300,000 of them are little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe.data.rows import ShardFile

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
        use_dictionary=_REPEATING,
        column_encoding={"row_group_offsets.list.element": "DELTA_BINARY_PACKED"},
    )
    return bytes(sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class ShardIndex:
    """Shard files in their order; a row is made into a `ShardFile` only when it is looked at."""

    table: pa.Table

    @classmethod
    def read(cls, content: bytes) -> ShardIndex:
        return cls(pq.read_table(pa.BufferReader(content), read_dictionary=_REPEATING).combine_chunks())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, number: int) -> ShardFile:
        values = {name: self.table.column(name)[number] for name in self.table.column_names}
        offsets = values.pop("row_group_offsets").values.to_numpy()
        return ShardFile(row_group_offsets=offsets, **{name: value.as_py() for name, value in values.items()})

    def __iter__(self) -> Iterator[ShardFile]:
        return (self[number] for number in range(len(self)))

    def select(self, split: str | None = None, corpus: str | None = None) -> ShardIndex:
        """The shards of a split and of a corpus, in their order."""
        keep = np.ones(len(self), dtype=bool)
        for name, wanted in (("split", split), ("corpus", corpus)):
            if wanted is not None:
                keep &= self._codes(name) == self._names(name).get(wanted, -1)
        return self if keep.all() else ShardIndex(self.table.filter(pa.array(keep)).combine_chunks())

    def by_hash(self) -> dict[str, list[ShardFile]]:
        """The files of every shard, by its hash."""
        found: dict[str, list[ShardFile]] = {}
        for file in self:
            found.setdefault(file.hash, []).append(file)
        return found

    def splits(self) -> list[str]:
        return sorted(self.table.column("split").unique().to_pylist())

    def corpora(self) -> list[str]:
        """Names in the order of the dataset."""
        return [str(name) for name in self.table.column("corpus").unique().to_pylist()]

    def paths(self) -> list[str]:
        return [str(path) for path in self.table.column("path").to_pylist()]

    def digest(self, number: int) -> str:
        return str(self.table.column("sha256")[number].as_py())

    def digests(self) -> list[str]:
        return [str(sha256) for sha256 in self.table.column("sha256").to_pylist()]

    @cached_property
    def sizes(self) -> np.ndarray:
        sizes: np.ndarray = self.table.column("size").to_numpy()
        return sizes

    @cached_property
    def stream_lengths(self) -> np.ndarray:
        """Tokens of each file in the stream, separators counted, shape (files,), int64."""
        lengths: np.ndarray = self.table.column("tokens").to_numpy() + self.table.column("documents").to_numpy()
        return lengths

    @property
    def bytes(self) -> int:
        return int(self.table.column("bytes").to_numpy().sum())

    def row_group_offsets(self, number: int) -> np.ndarray:
        """Where each row group of a file begins in its stream, shape (row groups,), int64."""
        offsets: np.ndarray = self.table.column("row_group_offsets")[number].values.to_numpy()
        return offsets

    def corpus_codes(self) -> np.ndarray:
        """The number of each file's corpus in `corpora()`, shape (files,)."""
        names = {name: number for number, name in enumerate(self.corpora())}
        of_code = np.array([names[name] for name in self._names("corpus")], dtype=np.int64)
        codes: np.ndarray = of_code[self._codes("corpus")]
        return codes

    def _codes(self, name: str) -> np.ndarray:
        column = self.table.column(name)
        chunk = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        codes: np.ndarray = chunk.indices.to_numpy(zero_copy_only=False)
        return codes

    def _names(self, name: str) -> dict[str, int]:
        column = self.table.column(name)
        chunk = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        return {str(value): number for number, value in enumerate(chunk.dictionary.to_pylist())}
