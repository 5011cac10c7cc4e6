"""One shard: documents of its sources in, up to two Parquet files (train, validation) out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gptpipe import storage
from gptpipe.corpus.cuts import PIECE_TOKENS, Piece, SafePlaces, cell_of, safe_places
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.plan import ShardPlan
from gptpipe.corpus.records import read_records
from gptpipe.corpus.sources import Source
from gptpipe.corpus.split import split_of
from gptpipe.corpus.text import TextFacts, decode_piece, pieces_of, read_text, text_pieces
from gptpipe.dataset.left_out import LeftOut
from gptpipe.dataset.rows import DAMAGED, SPLITS, Note, Row, ShardFile, ShardReader, ShardWriter, shard_path
from gptpipe.errors import UserError
from gptpipe.tokenizer import Tokenizer, get_tokenizer

_NFC_GROWTH = 4  # part numbers of a cell: its text may become three times as long, and so more than one part


@dataclass
class ShardReport:
    """What a shard came to: its files, what was left out, and whether it was there before, copied or made."""

    hash: str
    files: list[ShardFile] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    how: str = "made"


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to make one shard.

    Attributes:
        plan: the shard.
        dataset: URL of the dataset's folder.
        look: whether files of this shard were seen there: they are used if they are whole.
        earlier: URL of an earlier dataset that holds rows of unchanged sources of this shard.
        files: those of its files that hold them.
        unchanged: paths of those sources; the other sources are read.
        is_copy: the earlier dataset has this very shard: its files are linked or copied.
    """

    plan: ShardPlan
    dataset: str
    tokenizer: str
    options: ReadOptions
    look: bool = False
    earlier: str = ""
    files: tuple[ShardFile, ...] = ()
    unchanged: frozenset[str] = frozenset()
    is_copy: bool = False

    @property
    def size(self) -> int:
        """Bytes to read, roughly."""
        return self.plan.size


def make_shard(task: ShardTask) -> ShardReport:
    """Make one shard and return what it came to, unless it is there. Doing it again gives the same bytes.

    Raises:
        UserError: a source that cannot be read as text.
    """
    if task.look and (report := existing_shard(task)) is not None:
        return report
    if task.is_copy and (report := copy_shard(task)) is not None:
        return report
    tokenizer = get_tokenizer(task.tokenizer)
    earlier = _reuse(task)
    left_out: dict[str, LeftOut] = {}
    with ShardWriter(task.dataset, task.plan.corpus, task.plan.hash, tokenizer) as writer:
        for source in task.plan.sources:
            note = LeftOut()
            if source.path in earlier:
                copies = frozenset(task.plan.duplicates.get(source.path, ()))
                rows: Iterable[tuple[str, Row]] = earlier[source.path].take(copies, note)
            else:
                rows = source_rows(source, task, tokenizer, note)
            for split, row in rows:
                writer.add(split, row)
            if note:
                left_out[source.path] = note
        files = writer.commit(Note(left_out))
    return ShardReport(task.plan.hash, files, left_out)


def source_rows(source: Source, task: ShardTask, tokenizer: Tokenizer, note: LeftOut) -> Iterator[tuple[str, Row]]:
    """The rows of a source, or of the shard's range of it, each with its split."""
    bucket, options, safe = task.plan.bucket, task.options, safe_places(tokenizer)
    duplicates = frozenset(task.plan.duplicates.get(source.path, ()))
    if source.kind == "text":
        pieces: Iterable[Piece] = text_pieces(source, safe, bucket.start, bucket.stop)
        facts = task.plan.facts
        if facts is None:
            facts, pieces = read_text(source, safe, options)
        if (reason := facts.left_out or ("duplicate" if 0 in duplicates else "")) and bucket.start == 0:
            note.add(reason)
            note.duplicates += sorted(duplicates)
        if not reason:
            yield from text_rows(source, facts, pieces, tokenizer, options)
        return
    for record in read_records(source, options, note, bucket.start, bucket.stop):
        if record.position in duplicates:
            note.add("duplicate")
            note.duplicates.append(record.position)
            continue
        identity = f"{source.path}#{record.position}"
        if options.by_position:
            for split, start, text in split_by_position(record.text, options.validation):
                ends = start + len(text.encode()) == len(record.text.encode())
                place = f"{source.path}#{record.position + start}"
                for row in document_rows(place, text, tokenizer, safe, ends=ends):
                    yield split, row
        else:
            split = split_of(hashlib.sha256(record.text.encode()).hexdigest(), options.validation)
            for row in document_rows(identity, record.text, tokenizer, safe):
                yield split, row


def split_by_position(text: str, validation: float) -> Iterator[tuple[str, int, str]]:
    """The one document of a dataset: its first part trains, its last validates. Yields (split, byte, text)."""
    cut = int((1 - validation) * len(text))
    if text[:cut]:
        yield "train", 0, text[:cut]
    if text[cut:]:
        yield "validation", len(text[:cut].encode()), text[cut:]


def text_rows(
    source: Source, facts: TextFacts, pieces: Iterable[Piece], tokenizer: Tokenizer, options: ReadOptions
) -> Iterator[tuple[str, Row]]:
    """A text file's pieces as rows, each with its split."""
    split = split_of(facts.sha256, options.validation)
    for piece in pieces:
        if not options.by_position:
            rows = _piece_rows(f"{source.path}#0", piece, source, tokenizer, options)
            yield from ((split, row) for row in rows)
            continue
        for side, begin, part in _at_cut(piece, facts.cut):
            rows = _piece_rows(f"{source.path}#{begin}", part, source, tokenizer, options, cell_of(begin))
            yield from ((side, row) for row in rows)


def _at_cut(piece: Piece, cut: int) -> Iterator[tuple[str, int, Piece]]:
    """A piece, or its two parts when it lies across the cut: split, where its document begins, and itself."""
    end = piece.start + len(piece.data)
    if end <= cut:
        yield "train", 0, piece
    elif piece.start >= cut:
        yield "validation", cut, piece
    else:
        yield "train", 0, Piece(piece.start, piece.data[: cut - piece.start], False)
        yield "validation", cut, Piece(cut, piece.data[cut - piece.start :], piece.last)


def document_rows(
    identity: str, text: str, tokenizer: Tokenizer, safe: SafePlaces, *, ends: bool = True
) -> Iterator[Row]:
    """A document that is in memory as rows; `ends` is whether a separator follows its last row."""
    for piece in pieces_of(text, safe):
        yield from _rows(identity, piece, piece.data.decode(), tokenizer, ends=ends)


def _piece_rows(
    identity: str, piece: Piece, source: Source, tokenizer: Tokenizer, options: ReadOptions, first_cell: int = 0
) -> Iterator[Row]:
    text = decode_piece(piece, source)
    if text is None:
        raise UserError("the file changed while it was read", where=source.url, hint="run again when it is at rest")
    numbers = _NFC_GROWTH if options.nfc else 1
    yield from _rows(identity, piece, options.clean(text), tokenizer, first_cell=first_cell, numbers=numbers)


def _rows(
    identity: str,
    piece: Piece,
    text: str,
    tokenizer: Tokenizer,
    *,
    first_cell: int = 0,
    numbers: int = 1,
    ends: bool = True,
) -> Iterator[Row]:
    """A piece as one row, or as several when it has no safe place for so long that one would hold too much.

    Args:
        numbers: part numbers that belong to a cell.
    """
    tokens = tokenizer.encode_array(text)
    number = numbers * (piece.cell - first_cell)
    if len(tokens) <= PIECE_TOKENS:
        yield Row(identity, number, ends and piece.last, tokens, len(text) if text.isascii() else len(text.encode()))
        return
    lengths = tokenizer.byte_lengths
    for start in range(0, len(tokens), PIECE_TOKENS):
        part = tokens[start : start + PIECE_TOKENS]
        last = ends and piece.last and start + PIECE_TOKENS >= len(tokens)
        yield Row(identity, number + start // PIECE_TOKENS, last, part, int(lengths[part].sum()))


# ---- what an earlier dataset or an earlier, killed run already has


@dataclass
class _Earlier:
    """The rows of one unchanged source out of an earlier dataset, and what was left out of it then."""

    rows: list[tuple[str, Row]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def take(self, duplicates: frozenset[int], note: LeftOut) -> Iterator[tuple[str, Row]]:
        """The rows that are in the shard now: documents may have become copies of others since then."""
        new = duplicates - frozenset(self.left_out.duplicates)
        note.counts += self.left_out.counts
        note.counts["duplicate"] += len(new)
        note.counts = +note.counts
        note.places += self.left_out.places
        note.duplicates += sorted(duplicates)
        for split, row in self.rows:
            if row.position not in new:
                yield split, row


def _reuse(task: ShardTask) -> dict[str, _Earlier]:
    """By path, the unchanged sources whose documents are all in an earlier dataset's files.

    A file that is gone, or not what its index says, is not used: none of the sources counts as unchanged. A source
    of which a document was left out as a copy and is kept now is read again.
    """
    earlier_of = {path: _Earlier() for path in task.unchanged}
    for file in task.files:
        content = read_verified(task.earlier, file)
        if content is None:
            return {}
        reader = ShardReader(content)
        for path, left_out in reader.note().left_out.items():
            if path in earlier_of:
                earlier_of[path].left_out = left_out
        for row in reader.rows():
            if row.path in earlier_of:
                earlier_of[row.path].rows.append((file.split, row))
    copies = task.plan.duplicates
    return {
        path: earlier
        for path, earlier in earlier_of.items()
        if frozenset(earlier.left_out.duplicates) <= frozenset(copies.get(path, ()))
    }


def read_verified(dataset: str, file: ShardFile) -> bytes | None:
    """The content of a shard's file, or None when it is gone or not what its index says."""
    try:
        content = storage.read_bytes(storage.join(dataset, file.path))
    except FileNotFoundError:
        return None
    return content if hashlib.sha256(content).hexdigest() == file.sha256 else None


def existing_shard(task: ShardTask) -> ShardReport | None:
    """The report of a shard that is already complete in the dataset's folder, or None."""
    plan = task.plan
    report: ShardReport | None = None
    expected = list(SPLITS)
    for split in SPLITS:
        if split not in expected:
            continue
        try:
            content = storage.read_bytes(storage.join(task.dataset, shard_path(split, plan.hash)))
            reader = ShardReader(content)
            note = reader.note()
            sha256 = hashlib.sha256(content).hexdigest()
            listed = reader.describe(plan.corpus, split, plan.hash, len(content), sha256)
        except FileNotFoundError:
            continue
        except DAMAGED:
            return None  # it is made again
        expected = note.splits
        report = report or ShardReport(plan.hash, left_out=note.left_out, how="there")
        report.files.append(listed)
    if report is None or [file.split for file in report.files] != expected:
        return None
    return report


def copy_shard(task: ShardTask) -> ShardReport | None:
    """Take a whole shard from an earlier dataset, or None when it is not all there as its index says."""
    contents = [read_verified(task.earlier, file) for file in task.files]
    if not contents or None in contents:
        return None
    for file in task.files:
        storage.copy(storage.join(task.earlier, file.path), storage.join(task.dataset, file.path))
    note = ShardReader(contents[0] or b"").note()
    return ShardReport(task.plan.hash, list(task.files), note.left_out, how="copied")
