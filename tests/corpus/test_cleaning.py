"""Proves what cleaning leaves out, that it is counted and listed, and that steps lead where a fresh build does."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.corpus import duplicates
from gptpipe.corpus.build import TokenizeResult
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer
from tests.fixtures.corpora import build, contents, documents_of, refused, rows_of, some_text

GPT2 = get_tokenizer()


def folder_of(folder: Path, files: dict[str, str | bytes | list[Any]]) -> Path:
    """Files below a folder; a list is the texts, or the lines when they are bytes, of a JSONL file."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            lines = [line if isinstance(line, bytes) else json.dumps({"text": line}).encode() for line in content]
            content = b"".join(line + b"\n" for line in lines)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts_of(dataset: str) -> dict[str, str]:
    return {name: GPT2.decode(tokens) for name, tokens in documents_of(dataset).items()}


def corpora_of(made: TokenizeResult) -> dict[str, Any]:
    corpora: dict[str, Any] = open_dataset(made.dataset).manifest["corpora"]
    return corpora


def cleaned(tmp_path: Path, files: dict[str, Any], **options: Any) -> TokenizeResult:
    return build(tmp_path / "out", folder_of(tmp_path / "corpus", files), **{"validation": 0, **options})


# --- duplicates ----------------------------------------------------------------------------------------------


def test_of_copies_in_several_files_the_smallest_path_survives(tmp_path: Path) -> None:
    files = {"b.txt": "same", "a/z.txt": "same", "c.txt": "same", "d.txt": "other", "a-1.txt": "same"}
    made = cleaned(tmp_path, files, drop_duplicates=True)
    assert texts_of(made.dataset) == {"a-1.txt#0": "same", "d.txt#0": "other"}
    assert made.dropped == {"duplicate": 3}
    assert corpora_of(made)["corpus"]["dropped"] == {"duplicate": 3}
    assert (made.documents, corpora_of(made)["corpus"]["sources"]) == (2, 5)


def test_without_being_asked_copies_stay(tmp_path: Path) -> None:
    made = cleaned(tmp_path, {"a.txt": "same", "b.txt": "same", "c.jsonl": ["same", "same"]})
    assert len(texts_of(made.dataset)) == 4
    assert made.dropped == {}


def test_within_jsonl_the_first_copy_survives_as_numbers_count(tmp_path: Path) -> None:
    lines = ["same", *(f"another text {i}" for i in range(30)), "same", "another text 3", "same"]
    made = cleaned(tmp_path, {"a.jsonl": lines}, drop_duplicates=True)
    assert list(texts_of(made.dataset).values()) == ["same", *(f"another text {i}" for i in range(30))]
    assert made.dropped == {"duplicate": 3}
    # the copy at byte 9 or 10, not at byte 100, though "100" sorts before "9" as text
    lines = [b"{}" + b" " * 6, json.dumps({"text": "x"}).encode(), b" " * 120, json.dumps({"text": "x"}).encode()]
    (tmp_path / "second").mkdir()
    made = cleaned(tmp_path / "second", {"a.jsonl": lines, "b.txt": "y"}, drop_duplicates=True, on_error="skip")
    assert sorted(texts_of(made.dataset)) == ["a.jsonl#9", "b.txt#0"]


def test_within_parquet_the_first_row_survives(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    table = pa.table({"text": ["one", "two", "one", None, "three", "two"]})
    pq.write_table(table, tmp_path / "corpus" / "a.parquet", row_group_size=2)
    made = cleaned(tmp_path, {"0.jsonl": ["three"]}, drop_duplicates=True)
    assert texts_of(made.dataset) == {"0.jsonl#0": "three", "a.parquet#0": "one", "a.parquet#1": "two"}
    assert made.dropped == {"duplicate": 3, "empty": 1}


def test_over_corpora_the_smallest_id_survives_and_then_the_corpus_given_first(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "1", {"b.txt": "same", "c.txt": "twin", "own.txt": "first"})
    second = folder_of(tmp_path / "2", {"a.txt": "same", "c.txt": "twin", "own.txt": "second"})
    made = build(tmp_path / "out", first, second, validation=0, drop_duplicates=True)
    rows = {(row["corpus"], row["document_id"]) for row in rows_of(made.dataset)}
    assert rows == {
        ("corpus-2", "a.txt#0"),
        ("corpus", "c.txt#0"),
        ("corpus", "own.txt#0"),
        ("corpus-2", "own.txt#0"),
    }
    assert {name: corpus["dropped"] for name, corpus in corpora_of(made).items()} == {
        "corpus": {"duplicate": 1},
        "corpus-2": {"duplicate": 1},
    }
    assert made.dropped == {"duplicate": 2}
    turned = build(tmp_path / "out", second, first, validation=0, drop_duplicates=True)
    assert ("corpus", "c.txt#0") in {(row["corpus"], row["document_id"]) for row in rows_of(turned.dataset)}
    assert turned.id != made.id


def test_a_corpus_of_copies_alone_is_counted_and_has_nothing(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "1", {"a.txt": "same", "b.txt": "twin"})
    second = folder_of(tmp_path / "2", {"x.txt": "same", "y.jsonl": ["twin", "same"]})
    made = build(tmp_path / "out", first, second, validation=0, drop_duplicates=True)
    assert corpora_of(made)["corpus-2"] == {"dropped": {"duplicate": 3}, "skipped": [], "sources": 2, "splits": {}}
    assert build(tmp_path / "out", first, second, validation=0, drop_duplicates=True).already_done


def test_copies_of_large_texts_are_found_in_every_form(tmp_path: Path) -> None:
    text = some_text(1, 1_300_000)
    files = {
        "c.txt": text,
        "b.txt": b"\xef\xbb\xbf" + text.encode(),
        "d.jsonl": [text, "other"],
        "e.txt.gz": gzip.compress(text.encode()),
        "f.txt": text,
    }
    made = cleaned(tmp_path, files, drop_duplicates=True, shard_megabytes=1)
    found = texts_of(made.dataset)
    assert len(found) == 2
    assert found["b.txt#0"] == text
    assert made.dropped == {"duplicate": 4}
    again = build(tmp_path / "again", tmp_path / "corpus", validation=0, drop_duplicates=True, shard_megabytes=1)
    assert contents(again.dataset) == contents(made.dataset)


def test_copies_are_compared_as_they_are_tokenized(tmp_path: Path) -> None:
    files: dict[str, Any] = {"a.txt": "caf\u00e9", "b.txt": "cafe\u0301", "c.jsonl": ["cafe\u0301", "caf\u00e9 "]}
    plain = cleaned(tmp_path, files, drop_duplicates=True)
    assert plain.dropped == {"duplicate": 1}
    assert cleaned(tmp_path, files, drop_duplicates=True, nfc=True).dropped == {"duplicate": 2}
    bad: dict[str, Any] = {"a.txt": b"x \xff", "b.txt": b"x \xfe", "c.txt": "x \ufffd", "d.txt": "y"}
    (tmp_path / "bad").mkdir()
    replaced = cleaned(tmp_path / "bad", bad, drop_duplicates=True, errors="replace")
    assert texts_of(replaced.dataset) == {"a.txt#0": "x \ufffd", "d.txt#0": "y"}


def test_what_is_left_out_for_another_reason_is_no_copy(tmp_path: Path) -> None:
    files = {"a.txt": "", "b.txt": "", "c.jsonl": ["", "", "ab", "ab", "abc", "abc"]}
    made = cleaned(tmp_path, files, drop_duplicates=True, min_bytes=3)
    assert list(texts_of(made.dataset).values()) == ["abc"]
    assert made.dropped == {"duplicate": 1, "empty": 4, "too short": 2}


def test_the_split_of_a_text_is_that_without_dropping(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{i}.txt": some_text(i % 25) for i in range(60)}
    files["l.jsonl"] = [some_text(i % 30) for i in range(70)]
    kept = cleaned(tmp_path, files, validation=0.3)
    made = cleaned(tmp_path, files, validation=0.3, drop_duplicates=True)
    side = {tuple(row["tokens"]): row["split"] for row in rows_of(kept.dataset)}
    rows = rows_of(made.dataset)
    assert {tuple(row["tokens"]): row["split"] for row in rows} == side
    assert len(rows) == len(side) == 30
    assert made.dropped == {"duplicate": 100}
    assert set(side.values()) == {"train", "validation"}


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_digests_compared_in_shares_find_the_same_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    draw = random.Random(3)
    files: dict[str, Any] = {f"{i}.txt": f"text {draw.randrange(40)}" for i in range(60)}
    files["l.jsonl"] = [f"text {draw.randrange(60)}" for _ in range(80)]
    whole = cleaned(tmp_path, files, drop_duplicates=True)
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    shared = build(tmp_path / "shared", tmp_path / "corpus", validation=0, drop_duplicates=True)
    assert contents(shared.dataset) == contents(whole.dataset)
    texts = list(texts_of(shared.dataset).values())
    assert len(texts) == len(set(texts)) == 140 - shared.dropped["duplicate"]


def test_damaged_digests_of_an_unfinished_run_are_made_again(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{i}.txt": some_text(i % 4) for i in range(8)}
    made = cleaned(tmp_path, files, drop_duplicates=True)
    expected = contents(made.dataset)
    digests = sorted(Path(made.dataset, "digests").iterdir())
    assert digests
    for damage in (b"", b"no parquet", digests[0].read_bytes()[:-9]):
        Path(made.dataset, "manifest.json").unlink()
        digests[0].write_bytes(damage)
        cleaned(tmp_path, files, drop_duplicates=True)
        assert contents(made.dataset) == expected


# --- steps ---------------------------------------------------------------------------------------------------

Files = dict[str, Any]
SAME, TWIN = some_text(1), some_text(2)
NEUTRAL: Files = {f"n{i}.txt": some_text(100 + i) for i in range(12)}
START: Files = {**NEUTRAL, "m.txt": SAME, "z.txt": SAME, "l.jsonl": [TWIN, some_text(3), TWIN, SAME]}
LARGE = some_text(9, 1_200_000)
STEPS: list[tuple[str, Files, list[str]]] = [  # what is added or changed, what is removed
    ("start", START, []),
    ("a copy with a smaller id is added", {"a.txt": SAME}, []),
    ("the survivor goes, the former copy comes back", {}, ["a.txt"]),
    ("and again, of three", {}, ["l.jsonl"]),
    ("lines with copies of their own", {"k.jsonl": [SAME, TWIN, SAME, "", TWIN, some_text(4)], "y.txt": TWIN}, []),
    ("the survivor changes into something else", {"k.jsonl": [some_text(5), TWIN, some_text(4)]}, []),
    ("a large copy is added", {"large.txt": LARGE, "p.jsonl": [LARGE, "p"]}, []),
    ("a smaller large copy is added", {"b-large.txt": LARGE}, []),
    ("the ranged survivor goes", {}, ["b-large.txt"]),
    ("the last large text goes", {}, ["large.txt"]),
    ("a copy by another name", {"0.txt": TWIN, "1.jsonl": [some_text(100), some_text(101), ""]}, []),
    ("everything as in the beginning", START, ["0.txt", "1.jsonl", "k.jsonl", "y.txt", "p.jsonl"]),
]


@pytest.mark.parametrize("options", [{}, {"nfc": True, "min_bytes": 2}], ids=["plain", "cleaned"])
def test_with_copies_a_dataset_made_in_steps_is_the_one_made_afresh(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = tmp_path / "corpus"
    settings = {"validation": 0.3, "drop_duplicates": True, "shard_megabytes": 1, **options}
    ids = []
    for number, (name, added, removed) in enumerate(STEPS):
        folder_of(folder, added)
        for gone in removed:
            (folder / gone).unlink()
        stepped = build(tmp_path / "out", folder, **settings)
        fresh = build(tmp_path / f"fresh-{number}", folder, **settings)
        assert stepped.id == fresh.id, name
        assert sorted(contents(stepped.dataset)) == sorted(contents(fresh.dataset)), name
        assert contents(stepped.dataset) == contents(fresh.dataset), name
        assert stepped.dropped == fresh.dropped, name
        texts = list(texts_of(stepped.dataset).values())
        assert len(texts) == len(set(texts)), name
        ids.append(stepped.id)
    assert ids[0] == ids[-1]
    assert ids[2] == ids[0]
    assert ids[8] == ids[6]
    assert len(set(ids)) == len(ids) - 3


def test_over_corpora_with_copies_steps_lead_where_a_fresh_build_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {"validation": 0.2, "drop_duplicates": True}
    folder_of(one, {**NEUTRAL, "m.txt": SAME})
    folder_of(two, {"m.txt": SAME, "q.txt": TWIN, "r.jsonl": [SAME, TWIN, some_text(7)]})
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: folder_of(two, {"a.txt": SAME}),
        lambda: (one / "m.txt").unlink(),
        lambda: (two / "a.txt").unlink(),
        lambda: (two / "m.txt").unlink(),
        lambda: folder_of(one, {"r.jsonl": [TWIN]}),
        lambda: folder_of(one, {"r.jsonl": [some_text(8)]}),
    ]
    for number, change in enumerate(changes):
        change()
        stepped = build(tmp_path / "out", one, two, **settings)
        fresh = build(tmp_path / f"fresh-{number}", one, two, **settings)
        assert stepped.id == fresh.id
        assert contents(stepped.dataset) == contents(fresh.dataset), number


def test_random_steps_with_copies_lead_where_a_fresh_build_does(tmp_path: Path) -> None:
    draw = random.Random(11)
    folder = folder_of(tmp_path / "corpus", {"keep.txt": "one text that stays"})
    for number in range(12):
        for _ in range(draw.randrange(1, 4)):
            name = f"{draw.choice('abcdef')}.{draw.choice(['txt', 'jsonl'])}"
            if draw.random() < 0.3:
                (folder / name).unlink(missing_ok=True)
            else:
                texts = [f"text {draw.randrange(5)}" for _ in range(draw.randrange(1, 4))]
                folder_of(folder, {name: texts if name.endswith("jsonl") else texts[0]})
        stepped = build(tmp_path / "out", folder, validation=0, drop_duplicates=True)
        fresh = build(tmp_path / f"fresh-{number}", folder, validation=0, drop_duplicates=True)
        assert (stepped.id, stepped.dropped) == (fresh.id, fresh.dropped)
        assert contents(stepped.dataset) == contents(fresh.dataset)


def outcome(out: Path, folder: Path, **options: Any) -> object:
    """What a build comes to: the dataset's id and files, or why it is refused."""
    try:
        made = build(out, folder, **options)
    except UserError as refusal:
        return str(refusal)
    return made.id, contents(made.dataset)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"min_bytes": 500}, {}),
        ({"max_bytes": 100}, {}),
        ({"on_error": "skip"}, {"on_error": "skip", "errors": "replace"}),
        ({}, {"min_bytes": 500}),
        ({"errors": "skip", "on_error": "skip"}, {"on_error": "skip", "errors": "replace"}),
    ],
)
def test_other_options_for_the_only_file_split_it_as_if_nothing_had_been_there(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Cleaning decides how many documents a file has, and that decides how the dataset is split."""
    lines = [some_text(1, 600), "short", *([b'{"text": "bad \xff"}'] * ("on_error" in first))]
    if "max_bytes" in first:
        lines = ["short", *(some_text(i, 300) for i in range(9))]
    elif "on_error" in first:
        lines = [some_text(1, 600), b'{"text": "bad \xff"}', b'{"text": "worse \xff"}']
    folder = folder_of(tmp_path / "corpus", {"only.jsonl": lines})
    build(tmp_path / "out", folder, **{"validation": 0.5, **first})
    ends = [outcome(tmp_path / out, folder, **{"validation": 0.5, **second}) for out in ("fresh", "out")]
    assert ends[0] == ends[1]


# --- lengths and NFC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_documents_are_kept_by_their_length_in_bytes(tmp_path: Path, kind: str) -> None:
    texts = ["ab", "abc", "漢", "漢字", "abcdef", "abcdefg", "漢字é", "\ufeffab"]
    if kind == "txt":
        files: dict[str, Any] = {f"{i}.txt": text for i, text in enumerate(texts)}
        texts[-1] = "ab"  # there the mark is no part of the text
    elif kind == "jsonl":
        files = {"a.jsonl": texts}
    else:
        files = {}
        (tmp_path / "corpus").mkdir()
        pq.write_table(pa.table({"text": texts}), tmp_path / "corpus" / "a.parquet")
    made = cleaned(tmp_path, files, min_bytes=3, max_bytes=6)
    lengths = [len(text.encode()) for text in texts]
    kept = [text for text, length in zip(texts, lengths, strict=True) if 3 <= length <= 6]
    assert sorted(texts_of(made.dataset).values()) == sorted(kept)
    assert made.dropped == {"too short": sum(n < 3 for n in lengths), "too long": sum(n > 6 for n in lengths)}


def test_the_length_is_that_before_nfc(tmp_path: Path) -> None:
    made = cleaned(tmp_path, {"a.jsonl": ["e\u0301", "\u00e9"]}, min_bytes=3, nfc=True)
    assert list(texts_of(made.dataset).values()) == ["\u00e9"]
    assert made.dropped == {"too short": 1}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "txt.gz"])
def test_nfc_gives_the_tokens_of_the_composed_text(tmp_path: Path, kind: str) -> None:
    text = "cafe\u0301 A\u030angstr\u00f6m \u212b \u1112\u1161\u11ab \u0958 \u2000x =\u0338 \U0001d160\n" * 50
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": [text]}), file)
    else:
        file.write_bytes(json.dumps({"text": text}).encode() if kind == "jsonl" else text.encode())
    if kind == "txt.gz":
        file.write_bytes(gzip.compress(text.encode()))
    other = {"other.txt": "other"}
    plain, made = cleaned(tmp_path, other), cleaned(tmp_path, other, nfc=True)
    composed = unicodedata.normalize("NFC", text)
    assert composed != text
    assert documents_of(made.dataset)[f"a.{kind}#0"] == GPT2.encode_array(composed).tolist()
    assert documents_of(plain.dataset)[f"a.{kind}#0"] == GPT2.encode_array(text).tolist()
    (row,) = [row for row in rows_of(made.dataset) if row["document_id"].startswith("a.")]
    assert row["bytes"] == len(composed.encode())


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_nfc_of_one_document_split_by_position_loses_nothing(tmp_path: Path, kind: str) -> None:
    text = "cafe\u0301 na\u00efve A\u030a. " * 40
    made = cleaned(tmp_path, {f"a.{kind}": [text] if kind == "jsonl" else text}, nfc=True, validation=0.1)
    joined = "".join(texts_of(made.dataset).values())
    assert unicodedata.normalize("NFC", joined) == unicodedata.normalize("NFC", text)


# --- what cannot be read -------------------------------------------------------------------------------------

UNREADABLE: dict[str, bytes] = {
    "not JSON": b'{"text": "cut o',
    "not JSON at all": b"text",
    "no field": b'{"body": "x"}',
    "a number": b'{"text": 3}',
    "null": b'{"text": null}',
    "a list": b'["text"]',
    "bad UTF-8": b'{"text": "\xe9"}',
    "a lone surrogate": b'{"text": "half \\ud83d"}',
    "deep": b"[" * 100_000,
    "a long number": b'{"n": ' + b"9" * 5000 + b"}",
    "NUL bytes": b"\0" * 50,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_line_that_cannot_be_read_stops_or_is_skipped_counted_and_listed(tmp_path: Path, name: str) -> None:
    before, after = ["first", "second"], ["third"]
    folder = folder_of(tmp_path / "corpus", {"sub/a.jsonl": [*before, UNREADABLE[name], *after], "b.txt": "b"})
    error = refused(tmp_path / "out", folder, validation=0)
    assert error.where == f"{folder / 'sub' / 'a.jsonl'}, line 3"
    made = build(tmp_path / "out", folder, validation=0, on_error="skip")
    assert sorted(texts_of(made.dataset).values()) == ["b", "first", "second", "third"]
    assert sum(made.dropped.values()) == 1
    corpus = corpora_of(made)["corpus"]
    (place,) = corpus["skipped"]
    offset = sum(len(json.dumps({"text": text})) + 1 for text in before)
    assert place.startswith(f"sub/a.jsonl#{offset}: ")
    assert sum(corpus["dropped"].values()) == 1
    assert len(place) < 500


def test_nothing_is_skipped_that_can_be_read(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "a.jsonl": ["x", b"  ", b"", b'  {"text": "y"}  ', b'{"text": "\\ud83d\\ude42"}'],
        "b.txt": "b",
    }
    stop, skip = cleaned(tmp_path, files), cleaned(tmp_path, files, on_error="skip")
    assert list(texts_of(skip.dataset).values()) == list(texts_of(stop.dataset).values())
    assert "\U0001f642" in texts_of(stop.dataset).values()
    assert corpora_of(skip)["corpus"]["skipped"] == []
    assert skip.dropped == stop.dropped == {}


def test_a_bad_file_still_stops_when_only_lines_are_skipped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "corpus", {"a.txt": b"bad \xff", "b.txt": "b"})
    assert refused(tmp_path / "out", folder, on_error="skip").where == str(folder / "a.txt")


def test_many_lines_that_cannot_be_read_have_few_reasons_and_a_bounded_list(tmp_path: Path) -> None:
    """The reasons stand in the manifest, the notes of the shards and on the screen: a million of them would not do."""
    bad = [
        line
        for i in range(100)
        for line in (b'{"text": "\xff"}', b'{"text": "' + b"x" * i + b'\\ud83d"}', b'{"text": "' + b"x" * i)
    ]
    made = cleaned(tmp_path, {"a.jsonl": ["good", *bad], "b.jsonl": [*bad, "good"]}, on_error="skip")
    assert made.documents == 2
    assert sum(made.dropped.values()) == 600
    skipped = corpora_of(made)["corpus"]["skipped"]
    assert 0 < len(skipped) <= 100
    assert len(made.dropped) < 20, list(made.dropped)[:5]


def test_skipped_places_are_the_same_whichever_way_they_were_found(tmp_path: Path) -> None:
    bad = [b"bad", b'{"text": 1}']
    folder = folder_of(tmp_path / "corpus", {f"{i}.jsonl": [f"text {i}", *bad, "same"] for i in range(8)})
    options = {"validation": 0, "on_error": "skip", "drop_duplicates": True}
    first = build(tmp_path / "out", folder, **options)
    folder_of(folder, {"00.jsonl": ["same", b"bad", "x"]})
    stepped, fresh = build(tmp_path / "out", folder, **options), build(tmp_path / "fresh", folder, **options)
    assert contents(stepped.dataset) == contents(fresh.dataset)
    assert corpora_of(stepped) == corpora_of(fresh)
    assert len(corpora_of(first)["corpus"]["skipped"]) == 16
    assert len(corpora_of(stepped)["corpus"]["skipped"]) == 17
    Path(fresh.dataset, "manifest.json").unlink()
    again = build(tmp_path / "fresh", folder, **options)
    assert again.shards_written == 0
    assert contents(again.dataset) == contents(stepped.dataset)


@pytest.mark.parametrize(("errors", "expected"), [("replace", ["half \ufffd\ufffd\ufffd", "good"]), ("skip", ["good"])])
def test_a_lone_surrogate_is_replaced_or_skipped_as_other_bad_text(
    tmp_path: Path, errors: str, expected: list[str]
) -> None:
    files: dict[str, Any] = {
        "a.jsonl": [UNREADABLE["a lone surrogate"].replace(b"half", b"half"), "good"],
        "b.txt": "b",
    }
    made = cleaned(tmp_path, files, errors=errors)
    texts = [text for name, text in texts_of(made.dataset).items() if name.startswith("a.")]
    assert [text.replace("\ufffd", "") for text in texts] == [text.replace("\ufffd", "") for text in expected]
    assert made.dropped == ({"not UTF-8": 1} if errors == "skip" else {})


def test_empty_documents_are_counted_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"text": ["", None, "x"]}), tmp_path / "corpus" / "p.parquet")
    files: dict[str, Any] = {
        "a.txt": "",
        "bom.txt": b"\xef\xbb\xbf",
        "c.txt.gz": gzip.compress(b""),
        "d.jsonl": ["", "y"],
        "e.jsonl": "",
        "space.txt": " ",
    }
    made = cleaned(tmp_path, files)
    assert sorted(texts_of(made.dataset).values()) == [" ", "x", "y"]
    assert made.dropped == {"empty": 7}


def test_nul_bytes_and_other_controls_are_text(tmp_path: Path) -> None:
    texts = ["a\0b", "\0", "x\x01 y  \x01 z", "\x7f\x1b[0m", "tab\tnew\nline"]
    files: dict[str, Any] = {f"{i}.txt": text for i, text in enumerate(texts)}
    files["a.jsonl"] = texts
    made = cleaned(tmp_path, files)
    found = documents_of(made.dataset)
    assert sorted(found.values()) == sorted(GPT2.encoding.encode_ordinary(text) for text in [*texts, *texts])


def test_a_dataset_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "corpus", {"a.txt": "short", "b.jsonl": ["short", b"bad"]})
    for options in ({"min_bytes": 100}, {"max_bytes": 2}):
        error = refused(tmp_path / "out", folder, validation=0, on_error="skip", drop_duplicates=True, **options)
        assert "no document" in error.message


def test_the_options_of_cleaning_decide_the_id(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "corpus", {"a.txt": some_text(1), "b.txt": some_text(2)})
    options: list[dict[str, Any]] = [
        {},
        {"drop_duplicates": True},
        {"min_bytes": 1},
        {"max_bytes": 10**6},
        {"nfc": True},
        {"on_error": "skip"},
    ]
    ids = [build(tmp_path / "out", folder, validation=0, **each).id for each in options]
    assert all(one != other for one, other in itertools.combinations(ids, 2))


def test_digests_are_right_or_made_again_whichever_byte_is_flipped(tmp_path: Path) -> None:
    file = tmp_path / "digests.parquet"
    rows = [{"path": f"{i}.txt", "position": i, "sha256": bytes([i]) * 32} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows, duplicates._SCHEMA), file, compression="zstd", write_page_checksum=True)
    content = file.read_bytes()
    whole = duplicates._read(str(file))
    assert whole is not None
    assert whole.to_pylist() == rows
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        found = duplicates._read(str(file))
        assert found is None or found.to_pylist() == rows, place
