"""JSON lines as records."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gptpipe.corpus.json_text import missing_text, text_at
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.readers import open_range, open_whole
from gptpipe.corpus.record import Unreadable
from gptpipe.corpus.sources import Source
from gptpipe.corpus.text import _BOM, decode
from gptpipe.dataset.left_out import LeftOut
from gptpipe.errors import UserError

LONGEST_LINE = 1 << 30  # bytes; a packed file of some megabytes may hold a line that no memory does


def read_jsonl(
    source: Source, options: ReadOptions, left_out: LeftOut, start: int, stop: int | None
) -> Iterator[tuple[int, str]]:
    for offset, line in _lines(source, start, stop):
        if not line.strip():
            continue
        try:
            text = _text_of_line(line, offset, source, options.text_field)
        except (Unreadable, UserError) as error:
            if options.on_error == "skip":
                left_out.add(getattr(error, "kind", "not UTF-8"), f"{source.path}#{offset}: {error.message}")
                continue
            where = f"{source.url}, line {_line_number(source, offset)}"
            raise UserError(error.message, where=where, hint=error.hint) from None
        if text is None:
            left_out.add("not UTF-8")
        else:
            yield offset, text


def _lines(source: Source, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that begin in [start, stop)."""
    ranged = start > 0 or stop is not None
    with open_range(source, max(0, start - 1)) if ranged else open_whole(source) as stream:
        # a line that began earlier belongs to the range before
        offset = start - 1 + len(stream.readline()) if start else 0
        while stop is None or offset < stop:
            line = stream.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"a line of more than {LONGEST_LINE:,} bytes",
                    where=f"{source.url}, byte {offset}",
                    hint="write documents of that size to files of their own; or a packed file is not what it says",
                )
            yield offset, line
            offset += len(line)


def _text_of_line(line: bytes, offset: int, source: Source, field_name: str) -> str | None:
    if offset == 0 and line.startswith(_BOM):
        line, offset = line[len(_BOM) :], len(_BOM)
    text = decode(line, source, offset)
    if text is None:
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(
            "not JSON",
            f"not JSON ({error})",
            "correct or remove the line, or --set data.on_error=skip leaves such lines out",
        ) from None
    value = text_at(row, field_name)
    if not isinstance(value, str):
        raise Unreadable("no text field", *missing_text(row, field_name))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which no UTF-8 text holds
        if source.errors == "strict":
            raise Unreadable(
                "half a surrogate pair",
                f"half a surrogate pair at character {error.start}",
                "--set data.errors=replace or skip",
            ) from None
        if source.errors == "skip":
            return None
        return value.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
    return value


def _line_number(source: Source, offset: int) -> int:
    """The number of the line that begins at a byte, counted only when there is something to say about it."""
    number, left = 1, offset
    with open_whole(source) as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            number += block.count(b"\n")
            left -= len(block)
    return number
