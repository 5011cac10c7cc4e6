"""Proves that a large file read in ranges has the documents, tokens, splits and errors of the file read whole."""

from __future__ import annotations

import itertools
import json
import os
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.corpus.build import TokenizeResult, tokenize
from gptpipe.corpus.cuts import CELL
from gptpipe.corpus.engine import Processes
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer
from tests.fixtures.corpora import build, config, contents, refused, rows_of

MB = 1_000_000
END = 50_256
GPT2 = get_tokenizer()
SMALL = "a small neighbour"

ENGLISH = ["the", "Gisburn", "painted,", "1906", "it's", "(x)", "a", "\n", "\n\n  indent", "\t", "cheap genius", "x1y2"]
WORLD = ["naïve", "漢字", "🙂‍🙃", "\u00a0", "\u3000", "Ω", "end", "\r\n", "שלום", "é", "\u2028", "７", "नमस्ते"]
MUSIC = "\U0001d160"  # NFC makes 12 bytes and 9 tokens of its 4 bytes


def prose(seed: int, size: int, words: list[str] = ENGLISH) -> str:
    """At least `size` bytes of text."""
    draw = random.Random(seed)
    text, have = [f"{seed} "], 0
    while have < size:
        text.append(" ".join(draw.choices(words, k=5000)))
        have += len(text[-1].encode())
    return "".join(text)


def chinese(size: int) -> str:
    """Text of three-byte letters and four-byte emoji with a space or a newline now and then."""
    draw = random.Random(5)
    letters = [chr(code) for code in range(0x4E00, 0x5200)]
    words = [
        "".join(draw.choices(letters, k=12)) + draw.choice(["，", "。", "🙂", "👩‍👩‍👧 ", "\n", "「"])
        for _ in range(800)
    ]
    text = "".join(draw.choices(words, k=size // 38))
    assert len(text.encode()) > size
    return text


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def ranged(out: Path, *corpus: object, **options: Any) -> TokenizeResult:
    return build(out, *corpus, **{"shard_megabytes": 1, "validation": 0, **options})


@lru_cache(maxsize=2)
def tokens_of(text: str) -> np.ndarray:
    return GPT2.encode_array(text)


def documents(dataset: str) -> dict[str, np.ndarray]:
    """The tokens of every document; its parts must be in order, one of them, the last, marked so."""
    parts: dict[str, list[tuple[int, bool, np.ndarray]]] = {}
    for entry in pq.read_table(f"{dataset}/shards.parquet").to_pylist():
        rows = pq.read_table(f"{dataset}/{entry['path']}")
        names, numbers, lasts = (rows[name].to_pylist() for name in ("document_id", "part", "last"))
        tokens = [row.values.to_numpy() for row in rows["tokens"]]
        for name, number, last, row in zip(names, numbers, lasts, tokens, strict=True):
            parts.setdefault(name, []).append((number, last, row))
    for identity, found in parts.items():
        places = [number for number, _, _ in found]
        assert places == sorted(set(places)), f"{identity}: parts {places}"
        assert [last for _, last, _ in found] == [False] * (len(found) - 1) + [True], identity
    return {identity: np.concatenate([row for _, _, row in found]) for identity, found in parts.items()}


def stream(dataset: str, cache: Path, split: str = "train") -> np.ndarray:
    tokens = TokenStream(open_dataset(dataset), split, TokenCache(cache, 10**12))
    return tokens.read(0, tokens.length)


def same(found: np.ndarray, text: str) -> bool:
    """Whether these are the tokens of `text`, without a page of numbers when they are not."""
    return np.array_equal(found, tokens_of(text))


# --- one text ------------------------------------------------------------------------------------------------

TEXTS: dict[str, Callable[[], str]] = {
    "english": lambda: prose(1, 3 * MB + 77),
    "every script": lambda: prose(2, 5 * MB // 2, ENGLISH + WORLD),
    "chinese": lambda: chinese(5 * MB // 2),
    "emoji": lambda: "🙂🙃 " * 250_000,
    "digits without a place to cut": lambda: "0123456789" * 130_000,
    "punctuation without a place to cut": lambda: "-=" * 800_000,
    "two million cuts": lambda: "a1" * (MB + 11),
    "a place to cut only in the last byte": lambda: "7!" * 1_100_000 + " ",
    "one place to cut, on a border of ranges": lambda: "7!" * (MB // 2) + " x" + "?8" * 800_000,
    "one place to cut, before a border of ranges": lambda: "7!" * (MB // 2 - 1) + "7 x" + "?8" * 800_000,
    "spaces": lambda: "word" + " " * (2 * MB) + "end" + "\n" * 300_000,
    "controls": lambda: "a\x00b \x01c\x1f d\x7f e\x0c\x0b\r" * 130_000,
    "exactly two ranges": lambda: ("word " * 400_000)[: 2 * MB],
    "one byte more than a range": lambda: ("word " * 400_000)[: MB + 1],
    "marks after the places to cut": lambda: "e \u0301e\n\u0301 a1\u0338 " * 110_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_large_text_read_in_ranges_has_the_tokens_of_the_whole(tmp_path: Path, name: str) -> None:
    text = TEXTS[name]()
    folder = write(tmp_path / "corpus", {"large.txt": text, "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder)
    found = documents(made.dataset)
    assert set(found) == {"large.txt#0", "small.txt#0"}
    assert same(found["large.txt#0"], text)
    assert same(found["small.txt#0"], SMALL)
    assert made.documents == 2
    assert open_dataset(made.dataset).total("bytes") == len(text.encode()) + len(SMALL)
    first, second = ([*tokens_of(each), END] for each in (text, SMALL))
    whole = stream(made.dataset, tmp_path / "cache")
    assert any(np.array_equal(whole, np.array(each)) for each in (first + second, second + first))


def test_a_large_text_has_one_shard_a_range_whatever_the_number_of_workers(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"large.txt": prose(1, 7 * MB // 2), "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder)
    assert made.shards == 5
    again = ranged(tmp_path / "again", folder, workers=2)
    assert contents(again.dataset) == contents(made.dataset)
    assert ranged(tmp_path / "out", folder).already_done


def test_a_range_is_a_whole_number_of_cells(tmp_path: Path) -> None:
    text = prose(1, 7 * MB // 2)
    folder = write(tmp_path / "corpus", {"large.txt": text, "small.txt": SMALL})
    rows = [row for row in rows_of(ranged(tmp_path / "out", folder).dataset) if row["document_id"] == "large.txt#0"]
    assert [row["part"] for row in rows] == list(range(-(-len(text.encode()) // CELL)))


@pytest.mark.slow
@pytest.mark.parametrize("unit", [f"{MUSIC * 40} ", f"{MUSIC * 9}z1"], ids=["spaces", "digits"])
def test_parts_are_numbered_apart_where_nfc_makes_the_text_longer(tmp_path: Path, unit: str) -> None:
    text = unit * (5 * MB // 2 // len(unit.encode()))
    folder = write(tmp_path / "corpus", {"large.txt": text, "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder, nfc=True)
    assert same(documents(made.dataset)["large.txt#0"], unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    "words", [ENGLISH + WORLD, ["e\u0301", "A\u030a ", "\u212a1", "ﬁ", "각", "각", "\u2000", "=\u0338"]]
)
def test_nfc_of_the_ranges_is_nfc_of_the_whole(tmp_path: Path, words: list[str]) -> None:
    text = prose(3, 2 * MB + 5, words)
    folder = write(tmp_path / "corpus", {"large.txt": text, "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder, nfc=True)
    assert same(documents(made.dataset)["large.txt#0"], unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("by_position", [False, True])
def test_a_byte_order_mark_is_no_part_of_a_large_text(tmp_path: Path, by_position: bool) -> None:
    text = prose(4, 2 * MB)
    files = {"large.txt": b"\xef\xbb\xbf" + text.encode()}
    folder = write(tmp_path / "corpus", files if by_position else {**files, "small.txt": SMALL})
    found = documents(ranged(tmp_path / "out", folder).dataset)
    assert same(found["large.txt#0"], text)


def test_the_same_large_text_with_another_neighbour_keeps_its_shards(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"large.txt": prose(1, 3 * MB), "small.txt": SMALL})
    first = ranged(tmp_path / "out", folder)
    write(folder, {"added.txt": "another neighbour"})
    second = ranged(tmp_path / "out", folder)
    assert (second.shards_written, second.shards_copied) == (1, first.shards - 1)
    assert contents(second.dataset) == contents(ranged(tmp_path / "fresh", folder).dataset)


# --- one document, split by position -------------------------------------------------------------------------


def by_position(out: Path, folder: Path, cache: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    made = ranged(out, folder, validation=0.1, **options)
    train, validation = (stream(made.dataset, cache, split) for split in ("train", "validation"))
    assert validation[-1] == END
    assert END not in train
    assert END not in validation[:-1]
    return train, validation[:-1]


@pytest.mark.parametrize("name", ["every script", "chinese", "emoji"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_one_large_text_is_cut_at_its_place_in_characters(tmp_path: Path, name: str, mark: bytes) -> None:
    text = TEXTS[name]()
    folder = write(tmp_path / "corpus", {"large.txt": mark + text.encode()})
    train, validation = by_position(tmp_path / "out", folder, tmp_path / "cache")
    at = int(0.9 * len(text))
    assert same(train, text[:at])
    assert same(validation, text[at:])


@pytest.mark.slow
@pytest.mark.parametrize("size", [40, 2 * MB])
def test_the_cut_falls_between_characters_where_bytes_are_replaced(tmp_path: Path, size: int) -> None:
    unit = "漢字é".encode() + b"\xff"
    content = unit * (size // len(unit))
    text = content.decode(errors="replace")
    folder = write(tmp_path / "corpus", {"large.txt": content})
    at = int(0.9 * len(text))
    while text[at - 1] == "\ufffd":  # the character before the cut has several bytes
        content += b"."
        text = content.decode(errors="replace")
        at = int(0.9 * len(text))
    write(folder, {"large.txt": content})
    train, validation = by_position(tmp_path / "out", folder, tmp_path / "cache", errors="replace")
    assert GPT2.decode([*train.tolist(), *validation.tolist()]) == text
    assert same(train, text[:at])
    assert same(validation, text[at:])


# --- bytes that are not UTF-8 --------------------------------------------------------------------------------


def broken(at: int, size: int = 5 * MB // 2, bad: bytes = b"\xff") -> bytes:
    content = bytearray(prose(6, size).encode())
    content[at : at + len(bad)] = bad
    return bytes(content)


BAD = 5 * MB // 2 - 1000


def test_a_bad_byte_in_the_last_range_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"large.txt": broken(BAD), "small.txt": SMALL})
    error = refused(tmp_path / "out", folder, shard_megabytes=1)
    assert error.where == str(folder / "large.txt")
    assert f"byte {BAD} is not UTF-8 (0xff)" in error.message
    error = refused(tmp_path / "out", folder, shard_megabytes=1, workers=2)
    assert f"byte {BAD} is not UTF-8 (0xff)" in error.message


@pytest.mark.parametrize("at", [3, CELL, MB, 2 * MB, 2 * MB + 1])
def test_a_bad_byte_on_a_border_is_named_by_its_place_behind_a_byte_order_mark_too(tmp_path: Path, at: int) -> None:
    content = b"\xef\xbb\xbf" + broken(at - 3)
    folder = write(tmp_path / "corpus", {"large.txt": content, "small.txt": SMALL})
    error = refused(tmp_path / "out", folder, shard_megabytes=1)
    assert f"byte {at} is not UTF-8 (0xff)" in error.message


def test_a_character_that_the_end_of_a_large_file_cuts_off_is_named(tmp_path: Path) -> None:
    content = prose(1, 2 * MB).encode() + "漢".encode()[:2]
    folder = write(tmp_path / "corpus", {"large.txt": content, "small.txt": SMALL})
    assert f"byte {len(content) - 2} is not UTF-8" in refused(tmp_path / "out", folder, shard_megabytes=1).message


@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_skip_leaves_out_all_ranges_of_a_large_text_and_counts_it_once(tmp_path: Path, drop_duplicates: bool) -> None:
    folder = write(tmp_path / "corpus", {"large.txt": broken(BAD), "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder, errors="skip", drop_duplicates=drop_duplicates)
    assert set(documents(made.dataset)) == {"small.txt#0"}
    assert made.dropped == {"not UTF-8": 1}
    assert open_dataset(made.dataset).manifest["corpora"]["corpus"]["sources"] == 2


def test_replace_puts_the_replacement_character_where_the_bad_bytes_are(tmp_path: Path) -> None:
    content = broken(BAD, bad=b"\xe6\xbc \xff \xa0 \xc2")
    folder = write(tmp_path / "corpus", {"large.txt": content, "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder, errors="replace")
    assert same(documents(made.dataset)["large.txt#0"], content.decode(errors="replace"))


def test_a_text_of_bad_bytes_alone_is_replaced_as_a_whole(tmp_path: Path) -> None:
    content = b"\xff\xfe a \xa0\xc2 b\xc2\xa0 \xe2\x80 c" * 90_000
    folder = write(tmp_path / "corpus", {"large.txt": content, "small.txt": SMALL})
    made = ranged(tmp_path / "out", folder, errors="replace")
    assert same(documents(made.dataset)["large.txt#0"], content.decode(errors="replace"))


@pytest.mark.parametrize(("option", "reason"), [("max_bytes", "too long"), ("min_bytes", "too short")])
def test_a_large_text_of_the_wrong_length_is_left_out_once(tmp_path: Path, option: str, reason: str) -> None:
    text = prose(1, 2 * MB)
    folder = write(tmp_path / "corpus", {"large.txt": text, "small.txt": SMALL, "larger.txt": prose(2, 4 * MB)})
    limit = len(text.encode())
    kept = ranged(tmp_path / "kept", folder, **{option: limit})
    assert "large.txt#0" in documents(kept.dataset)
    made = ranged(tmp_path / "out", folder, **{option: limit + (1 if option == "min_bytes" else -1)})
    assert "large.txt#0" not in documents(made.dataset)
    assert made.dropped == {reason: kept.dropped.get(reason, 0) + 1}


# --- records -------------------------------------------------------------------------------------------------


def lines_of(texts: list[str], separator: bytes = b"\n") -> tuple[bytes, dict[str, str]]:
    """A JSONL file, and its documents by their ids."""
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + separator for text in texts]
    offsets = itertools.accumulate(map(len, lines), initial=0)
    return b"".join(lines), {f"large.jsonl#{offset}": text for offset, text in zip(offsets, texts, strict=False)}


def short_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{i} " + " ".join(draw.choices(ENGLISH + WORLD, k=draw.randrange(1, 40))) for i in range(count)]


def checked(dataset: str, expected: dict[str, str]) -> None:
    found = documents(dataset)
    assert set(found) == set(expected)
    assert [identity for identity, text in expected.items() if not same(found[identity], text)] == []


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\n\n \n"])
def test_large_jsonl_read_in_ranges_has_every_line_once(tmp_path: Path, separator: bytes) -> None:
    content, expected = lines_of(short_texts(14_000), separator)
    assert len(content) > 2 * MB
    folder = write(tmp_path / "corpus", {"large.jsonl": content.rstrip()})
    made = ranged(tmp_path / "out", folder)
    assert made.shards == -(-len(content.rstrip()) // MB)
    checked(made.dataset, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-2, -1, 0, 1])
def test_a_line_that_begins_on_a_border_of_ranges_is_read_once(tmp_path: Path, shift: int) -> None:
    """A line of exactly such a length that the next one begins at the border, or next to it."""
    head, _ = lines_of(short_texts(9000))
    head = head[: head.rindex(b"\n", 0, MB - 10_000) + 1]
    filler = b'{"text": "' + b"x y " * 50_000
    filler = filler[: MB + shift - len(head) - 3] + b'"}\n'
    tail, _ = lines_of(short_texts(5000, seed=1))
    content = head + filler + tail
    assert len(head + filler) == MB + shift
    folder = write(tmp_path / "corpus", {"large.jsonl": content})
    found = documents(ranged(tmp_path / "out", folder).dataset)
    offset, expected = 0, {}
    for line in content.splitlines(keepends=True):
        expected[f"large.jsonl#{offset}"] = json.loads(line)["text"]
        offset += len(line)
    assert list(found) == list(expected)
    assert all(same(found[identity], text) for identity, text in expected.items())


def test_a_line_longer_than_a_range_is_one_document(tmp_path: Path) -> None:
    texts = ["before", prose(1, 7 * MB // 2, ENGLISH + WORLD), "after", "7!" * 700_000, "end"]
    content, expected = lines_of(texts)
    folder = write(tmp_path / "corpus", {"large.jsonl": content})
    checked(ranged(tmp_path / "out", folder).dataset, expected)


def test_a_byte_order_mark_before_large_jsonl_is_no_part_of_it(tmp_path: Path) -> None:
    content, expected = lines_of(short_texts(14_000))
    folder = write(tmp_path / "corpus", {"large.jsonl": b"\xef\xbb\xbf" + content})
    found = documents(ranged(tmp_path / "out", folder).dataset).values()
    assert [same(*pair) for pair in zip(found, expected.values(), strict=True)] == [True] * len(expected)


def test_a_broken_line_far_into_a_large_file_is_named_by_its_number(tmp_path: Path) -> None:
    content, _ = lines_of(short_texts(14_000))
    lines = content.split(b"\n")
    lines[12_344] = lines[12_344][:-1]
    folder = write(tmp_path / "corpus", {"large.jsonl": b"\n".join(lines)})
    error = refused(tmp_path / "out", folder, shard_megabytes=1)
    assert error.where == f"{folder / 'large.jsonl'}, line 12345"
    assert error.message.startswith("not JSON")


@pytest.mark.parametrize("number", [1, 12_345])
def test_a_bad_byte_in_a_line_is_named_by_its_place_in_the_file_and_its_line(tmp_path: Path, number: int) -> None:
    content, _ = lines_of(short_texts(14_000))
    lines = content.split(b"\n")
    lines[number - 1] = lines[number - 1][:-2] + b"\xff" + lines[number - 1][-2:]
    content = b"\xef\xbb\xbf" + b"\n".join(lines)
    folder = write(tmp_path / "corpus", {"large.jsonl": content})
    error = refused(tmp_path / "out", folder, shard_megabytes=1)
    assert error.where == f"{folder / 'large.jsonl'}, line {number}"
    bad = content.index(b"\xff")
    assert error.message.startswith(f"byte {bad} is not UTF-8")


@pytest.mark.slow
def test_skipped_lines_of_every_range_are_counted_and_listed(tmp_path: Path) -> None:
    content, expected = lines_of(short_texts(14_000))
    broken_at = [identity for i, identity in enumerate(expected) if i % 1000 == 500]
    data = bytearray(content)
    for identity in broken_at:
        data[int(identity.split("#")[1])] = ord("[")
    folder = write(tmp_path / "corpus", {"large.jsonl": bytes(data)})
    made = ranged(tmp_path / "out", folder, on_error="skip")
    checked(made.dataset, {identity: text for identity, text in expected.items() if identity not in broken_at})
    assert sum(made.dropped.values()) == len(broken_at) == 14
    skipped = open_dataset(made.dataset).manifest["corpora"]["corpus"]["skipped"]
    assert [place.split(":")[0] for place in skipped] == broken_at


# --- Parquet -------------------------------------------------------------------------------------------------


def parquet(file: Path, texts: list[str | None], group: int, kind: pa.DataType | None = None, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(texts, kind or pa.string())
    pq.write_table(pa.table({"id": range(len(texts)), "text": column}), file, row_group_size=group, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "group"),
    # not a dictionary in groups of one row: each group would hold the whole dictionary
    [
        *itertools.product([pa.string(), pa.large_string()], [1, 700, 5000, 10**6]),
        *itertools.product([pa.dictionary(pa.int32(), pa.string())], [700, 5000, 10**6]),
    ],
)
def test_large_parquet_read_by_row_groups_has_every_row_once(tmp_path: Path, group: int, kind: pa.DataType) -> None:
    texts: list[str | None] = [prose(1, 3 * MB // 2), None, "", *short_texts(300 if group == 1 else 6000), prose(2, MB)]
    file = tmp_path / "corpus" / "large.parquet"
    parquet(file, texts, group, kind, compression="none")
    assert file.stat().st_size > MB
    made = ranged(tmp_path / "out", file.parent)
    checked(made.dataset, {f"large.parquet#{row}": text for row, text in enumerate(texts) if text})
    assert made.dropped == {"empty": 2}
    assert (made.shards > 1) == (group < len(texts))


def test_parquet_text_that_is_not_utf8_is_named_by_its_row_in_the_file(tmp_path: Path) -> None:
    values = [text.encode() for text in short_texts(14_000)]
    values[13_333] = b"bad \xff"
    table = pa.table({"text": pa.array(values, pa.binary()).view(pa.string())})
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "large.parquet", row_group_size=1000, compression="none")
    error = refused(tmp_path / "out", tmp_path / "corpus", shard_megabytes=1)
    assert error.where == f"{tmp_path / 'corpus' / 'large.parquet'}, row 13333"
    assert "byte 4 is not UTF-8 (0xff)" in error.message
    made = ranged(tmp_path / "out", tmp_path / "corpus", on_error="skip")
    assert made.documents == 13_999
    assert open_dataset(made.dataset).manifest["corpora"]["corpus"]["skipped"][0].startswith("large.parquet#13333:")


def test_a_damaged_row_group_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    file = tmp_path / "corpus" / "large.parquet"
    parquet(file, list(short_texts(14_000)), 1000, compression="snappy", write_page_checksum=True)
    where = pq.ParquetFile(file).metadata.row_group(13).column(1).data_page_offset
    content = bytearray(file.read_bytes())
    content[where : where + 200] = b"\x00" * 200
    file.write_bytes(content)
    error = refused(tmp_path / "out", file.parent, shard_megabytes=1)
    assert error.where == str(file)


# --- a file that does not stay as it was ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["txt", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("jsonl", "parquet"))]
)
@pytest.mark.parametrize(
    ("act", "message"), [("change", "changed"), ("append", "changed"), ("remove", "gone"), ("replace", "changed")]
)
def test_a_large_file_that_changes_after_it_was_planned_is_refused_by_name(
    tmp_path: Path, kind: str, act: str, message: str
) -> None:
    file = tmp_path / "corpus" / f"large.{kind}"
    write(file.parent, {"small.txt": SMALL})
    texts = short_texts(8000)
    if kind == "parquet":
        parquet(file, list(texts), 1000, compression="none")
    else:
        file.write_bytes("\n".join(texts).encode() if kind == "txt" else lines_of(texts)[0])
    content = file.read_bytes()

    class Disturbing(Processes):
        def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
            waiting = list(tasks)
            if act == "remove":
                file.unlink()
            elif act == "append":
                file.write_bytes(content + content[-100:])
            elif act == "replace":  # the same size, another file
                beside = file.with_suffix(".new")
                beside.write_bytes(content[::-1])
                os.utime(beside, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
                beside.replace(file)
            else:
                file.write_bytes(content.replace(b"Gisburn", b"gisburn"))
            yield from super().run(work, waiting)

    with pytest.raises(UserError, match=message) as caught:
        tokenize(config(file.parent, shard_megabytes=1, validation=0), str(tmp_path / "out"), Disturbing(2))
    assert caught.value.where == str(file)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("manifest.json"))
    if act != "append":
        return
    file.write_bytes(content)
    made = ranged(tmp_path / "out", file.parent)
    assert contents(made.dataset) == contents(ranged(tmp_path / "fresh", file.parent).dataset)
