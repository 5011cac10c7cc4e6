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
from gptpipe.corpus.text import decode
from gptpipe.dataset.dataset import Dataset
from gptpipe.errors import UserError
from gptpipe.tokenizer import Tokenizer, get_tokenizer

_SAMPLED = 48  # files
_BYTES = 1 << 16  # of each
_PIECE = 1 << 12  # bytes, unpacked: what is lost of the last one
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
        UserError: sources that cannot be used, or text that is not UTF-8 where that is not allowed.
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
    """Texts at a file's beginning, and the bytes of the file that hold them; none where it cannot be read.

    Raises:
        UserError: a text file that is not UTF-8, as tokenizing it would say.
    """
    if source.kind == "text":
        return _text(source)
    with suppress(OSError, pa.ArrowException, KeyError, ValueError, UserError):
        if source.kind == "parquet":
            return _rows(source, field)
        taken, data = _bytes(source)
        whole = data if len(taken) == source.size else data[: data.rfind(b"\n") + 1]
        return list(_lines(whole, field)), round(len(taken) * len(whole) / max(1, len(data)))
    return [], 0


def _text(source: Source) -> tuple[list[str], int]:
    try:
        taken, data = _bytes(source)
    except (OSError, pa.ArrowException, ValueError, UserError):
        return [], 0
    is_whole = len(taken) == source.size and not source.packing
    text = decode(data if is_whole else _without_last_character(data), source, 0)
    return [] if text is None else [text], len(taken)


def _bytes(source: Source) -> tuple[bytes, bytes]:
    """A file's beginning as it lies there, and unpacked."""
    with storage.open_read(source.url) as raw:
        taken = raw.read(_BYTES)
    return taken, _unpacked(taken, source.packing) if source.packing else taken


def _without_last_character(data: bytes) -> bytes:
    """Text in UTF-8 that was cut anywhere, without the character in which it may be cut."""
    tail = data[-4:]
    begin = next((back for back in range(1, len(tail) + 1) if tail[-back] >= 0xC0), 0)
    return data[: len(data) - begin]


def _unpacked(beginning: bytes, packing: str) -> bytes:
    """What the beginning of a packed file holds; it ends somewhere."""
    pieces = []
    stream = pa.input_stream(pa.BufferReader(beginning), compression=packing)
    with suppress(OSError, pa.ArrowException):
        while piece := stream.read(_PIECE):
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
