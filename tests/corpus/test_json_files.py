"""Files called .json by what they hold, nested text fields, and every type in which Arrow holds text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import TokenizeResult, tokenize
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.index import ShardIndex
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer

TEXTS = [f"text number {number} of some" for number in range(20)]


def build(tmp_path: Path, corpus: object, **options: Any) -> TokenizeResult:
    return tokenize(DataConfig(corpus=[str(corpus)], workers=1, **options), str(tmp_path / "out"))


def texts_of(result: TokenizeResult) -> list[str]:
    """All documents, sorted."""
    decode = get_tokenizer("gpt2").decode
    index: ShardIndex = open_dataset(result.dataset).index()
    rows = [row for path in index.paths() for row in pq.read_table(f"{result.dataset}/{path}").to_pylist()]
    return sorted(decode(row["tokens"]).removesuffix("<|endoftext|>") for row in rows)


def lines(objects: list[Any]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in objects).encode()


@pytest.mark.parametrize("name", ["c4.json", "c4.json.gz", "C4.JSON"])
@pytest.mark.parametrize("how", ["file", "glob", "folder"])
def test_lines_in_a_json_file_are_documents(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "corpus").mkdir()
    content = lines([{"url": "https://x", "text": text} for text in TEXTS])
    (tmp_path / "corpus" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    given = {"file": f"corpus/{name}", "glob": "corpus/*[nNz]", "folder": "corpus"}[how]
    assert texts_of(build(tmp_path, tmp_path / given)) == sorted(TEXTS)


def test_in_a_folder_json_files_without_the_text_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    files = {
        "package.json": b'{\n  "name": "x"\n}\n',
        "geo.json": b'{"type": "FeatureCollection", "features": []}\n',
        "list.json": b'[{"id": 1}, {"id": 2}]',
        "number.json": b"3\n",
        "nothing.json": b"",
        "broken.json.gz": b"no gzip",
        "a.jsonl": lines([{"text": text} for text in TEXTS]),
    }
    for name, content in files.items():
        (tmp_path / "corpus" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "corpus" / name).write_bytes(content)
    assert texts_of(build(tmp_path, tmp_path / "corpus")) == sorted(TEXTS)
    assert "6 files left out, which hold no text" in caplog.text


@pytest.mark.parametrize("how", ["file", "folder"])
def test_an_array_of_objects_with_text_is_refused_by_name(tmp_path: Path, how: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "all.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    with pytest.raises(UserError, match=r"all\.json: one array of objects.*jq"):
        build(tmp_path, tmp_path / "corpus" / ("all.json" if how == "file" else ""))


def test_a_file_that_was_named_and_is_no_lines_of_json_is_text(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{\n  "name": "x and some more of it"\n}\n')
    assert "".join(texts_of(build(tmp_path, tmp_path / "one.json"))).count('"name"') == 1


def test_a_text_field_reaches_into_objects_and_lists(tmp_path: Path) -> None:
    rows = [{"id": 1, "meta": {"text": text}, "a.b": text.upper()} for text in TEXTS]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert texts_of(build(tmp_path, tmp_path / "a.jsonl", text_field="meta.text")) == sorted(TEXTS)
    assert texts_of(build(tmp_path, tmp_path / "a.jsonl", text_field="a.b")) == sorted(t.upper() for t in TEXTS)
    chat = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "yes"}]} for t in TEXTS]
    (tmp_path / "chat.jsonl").write_bytes(lines(chat))
    made = build(tmp_path, tmp_path / "chat.jsonl", text_field="messages.content")
    assert texts_of(made) == sorted(f"{text}\nyes" for text in TEXTS)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages.content joins what they say"),
        ({"meta": {"body": "x", "n": 1}, "title": "t"}, "it has 'meta.body', 'title'; choose one"),
        ({"id": 3}, "it has 'id'"),
        ({}, "it has no fields"),
        ([], "not an object"),
        ({"text": 3}, "field 'text' is not text"),
    ],
)
def test_an_object_without_the_text_says_what_it_has(tmp_path: Path, row: object, hint: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    with pytest.raises(UserError) as caught:
        build(tmp_path, tmp_path / "a.jsonl")
    assert hint in str(caught.value)
    assert "line 1" in str(caught.value)


KINDS = {
    "string": pa.string(),
    "large string": pa.large_string(),
    "string view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "dictionary of large strings": pa.dictionary(pa.int32(), pa.large_string()),
    "json": pa.json_(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_arrow_type_that_holds_text_is_text(tmp_path: Path, kind: str) -> None:
    values = [f'"{text}"' for text in TEXTS] if kind == "json" else TEXTS
    plain = pa.array([*values, None], pa.string())
    if kind == "json":
        column: pa.Array = pa.ExtensionArray.from_storage(KINDS[kind], plain)
    else:
        column = plain.cast(KINDS[kind])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    made = build(tmp_path, tmp_path / "a.parquet")
    assert texts_of(made) == sorted(values)
    assert made.dropped == {"empty": 1}


def test_a_column_in_a_column(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(20)), "meta": [{"n": 1, "inner": {"text": text}} for text in TEXTS]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts_of(build(tmp_path, tmp_path / "a.parquet", text_field="meta.inner.text")) == sorted(TEXTS)
    with pytest.raises(UserError, match=r"no column 'text' — it has 'meta\.inner\.text'"):
        build(tmp_path, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'meta\.none'"):
        build(tmp_path, tmp_path / "a.parquet", text_field="meta.none")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS)], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: 2 columns are called 'text' — rename them"):
        build(tmp_path, tmp_path / "a.parquet")
