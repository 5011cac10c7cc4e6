"""How much text there is, before it is tokenized: exactly where its dataset is there, otherwise from a sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.config import DataConfig
from gptpipe.corpus.build import known_dataset
from gptpipe.corpus.sources import Source, list_sources
from gptpipe.dataset.dataset import Dataset
from gptpipe.errors import UserError
from gptpipe.tokenizer import Tokenizer, get_tokenizer

_SAMPLED = 48  # files
_BYTES = 1 << 16  # of each
_ROWS = 100


@dataclass(frozen=True)
class Amount:
    """How much text there is.

    Attributes:
        files, bytes: of the sources. documents, tokens: of both splits. validation_documents, validation_tokens: of
            these, what is held out.
        dataset: the dataset of it; None where it must be made, and the numbers are estimates.
    """

    files: int
    bytes: int
    documents: int
    tokens: int
    validation_documents: int
    validation_tokens: int
    dataset: Dataset | None

    @property
    def train_tokens(self) -> int:
        return self.tokens - self.validation_tokens


def amount_of(config: DataConfig, out: str) -> Amount:
    """How much text these corpora hold.

    Args:
        out: folder of the datasets.

    Raises:
        UserError: sources that cannot be used.
    """
    listed = list_sources(config, quiet=True)
    sources = [source for source in listed if source.size]
    files, size = len(sources), sum(source.size for source in sources)
    if dataset := known_dataset(config, out, listed):
        held = {what: dataset.total(what, "validation") for what in ("documents", "tokens")}
        everything = {what: dataset.total(what) for what in ("documents", "tokens")}
        return Amount(
            files, size, everything["documents"], everything["tokens"], held["documents"], held["tokens"], dataset
        )
    documents, tokens = _estimate(sources, get_tokenizer(config.tokenizer), config.text_field)
    kept = config.validation
    return Amount(files, size, documents, tokens, round(documents * kept), round(tokens * kept), None)


def _estimate(sources: list[Source], tokenizer: Tokenizer, field: str) -> tuple[int, int]:
    """Documents and tokens, about, by kind of file and packing: those of a sample, for as many bytes as there are."""
    documents = tokens = 0.0
    for kind in {(source.kind, source.packing) for source in sources}:
        those = [source for source in sources if (source.kind, source.packing) == kind]
        count = min(_SAMPLED, len(those))
        read = counted = seen = 0
        for number in range(count):
            texts, taken = _beginning(those[number * len(those) // count], field)
            read += taken
            counted += len(texts)
            seen += sum(len(tokenizer.encode(text)) for text in texts)
        size = sum(source.size for source in those)
        documents += len(those) if kind[0] == "text" else counted * size / max(1, read)
        tokens += seen * size / max(1, read)
    return round(documents), round(tokens)


def _beginning(source: Source, field: str) -> tuple[list[str], int]:
    """Texts at a file's beginning, and the bytes of the file that hold them; none where it cannot be read."""
    with suppress(OSError, pa.ArrowException, KeyError, ValueError, UserError):
        if source.kind == "parquet":
            return _rows(source, field)
        with storage.open_read(source.url) as raw:
            taken = raw.read(_BYTES)
        data = _unpacked(taken, source.packing) if source.packing else taken
        if source.kind == "text":
            return [data.decode("utf-8", "ignore")], len(taken)
        whole = data if len(taken) == source.size else data[: data.rfind(b"\n") + 1]
        return list(_lines(whole, field)), round(len(taken) * len(whole) / max(1, len(data)))
    return [], 0


def _unpacked(beginning: bytes, packing: str) -> bytes:
    """What the beginning of a packed file holds; it ends somewhere."""
    pieces = []
    stream = pa.input_stream(pa.BufferReader(beginning), compression=packing)
    with suppress(OSError, pa.ArrowException):
        while piece := stream.read(_BYTES):
            pieces.append(bytes(piece))
    return b"".join(pieces)


def _lines(data: bytes, field: str) -> Iterator[str]:
    for line in data.splitlines():
        value = json.loads(line) if line.strip() else None
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str):
            yield value


def _rows(source: Source, field: str) -> tuple[list[str], int]:
    with storage.open_read(source.url) as raw:
        file = pq.ParquetFile(raw)
        batch = next(file.iter_batches(_ROWS, columns=[field.partition(".")[0]]), None)
        if batch is None or not batch.num_columns:
            return [], 0
        values = batch.column(0).to_pylist()
        for name in field.split(".")[1:]:
            values = [value.get(name) if isinstance(value, dict) else None for value in values]
        share = batch.num_rows / max(1, file.metadata.num_rows)
    texts = [value.decode("utf-8", "ignore") if isinstance(value, bytes) else value for value in values if value]
    return [str(text) for text in texts], round(source.size * share)
