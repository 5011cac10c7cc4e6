"""The records of a file, of JSON lines or Parquet rows, clean and of a length that is kept."""

from __future__ import annotations

from collections.abc import Iterator

from gptpipe.corpus.jsonl import read_jsonl
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.parquet import read_parquet
from gptpipe.corpus.record import Record
from gptpipe.corpus.sources import Source
from gptpipe.dataset.left_out import LeftOut


def read_records(
    source: Source, options: ReadOptions, left_out: LeftOut, start: int = 0, stop: int | None = None
) -> Iterator[Record]:
    """The documents of a JSONL or Parquet file, or of a range of it.

    Args:
        start, stop: bytes in which a JSONL line begins, or row groups of Parquet; `stop` None is the end.

    Raises:
        UserError: a record that cannot be read and is not skipped; file and line are named.
    """
    reader = read_jsonl if source.kind == "jsonl" else read_parquet
    for position, text in reader(source, options, left_out, start, stop):
        size = len(text) if text.isascii() else len(text.encode())
        if not text:
            left_out.add("empty")
        elif reason := options.wrong_length(size):
            left_out.add(reason)
        else:
            yield Record(position, options.clean(text))
