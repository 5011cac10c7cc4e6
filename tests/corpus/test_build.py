"""Proves that a dataset holds its texts' tokens, is decided by content alone, and survives kills and bad input."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.tokenizer import END_OF_TEXT, get_tokenizer, references
from tests.fixtures.corpora import (
    CL100K_PATTERN,
    GPT2,
    MILLION,
    Built,
    build,
    contents,
    documents_of,
    rows_of,
    some_text,
    write,
)

# --- what a dataset is ---------------------------------------------------------------------------------------


def test_every_document_s_tokens_are_those_of_its_whole_text(mixed: Built) -> None:
    expected = sorted(
        (file, GPT2.encode_ordinary(text)) for file, texts in mixed.documents.items() for text in texts if text
    )
    found = sorted((name.rsplit("#", 1)[0], tokens) for name, tokens in documents_of(mixed.result.dataset).items())
    assert found == expected
    assert mixed.result.documents == len(expected)
    assert mixed.result.tokens == sum(len(tokens) for _, tokens in expected)


def test_document_ids_are_paths_and_places_each_used_once(mixed: Built) -> None:
    rows = rows_of(mixed.result.dataset)
    assert len({(row["document_id"], row["part"]) for row in rows}) == len(rows)
    assert all(row["document_id"].rsplit("#", 1)[1].isdecimal() for row in rows)
    assert all(row["part"] == 0 and row["last"] for row in rows)
    assert all(row["bytes"] == len(GPT2.decode(row["tokens"]).encode()) for row in rows)


def test_the_shards_columns_have_the_promised_types(mixed: Built) -> None:
    files = pq.read_table(f"{mixed.result.dataset}/shards.parquet").to_pylist()
    assert {entry["split"] for entry in files} == {"train", "validation"}
    for entry in files:
        schema = pq.read_schema(f"{mixed.result.dataset}/{entry['path']}")
        assert schema.names == ["document_id", "part", "last", "tokens", "bytes"]
        assert schema.field("document_id").type == pa.string()
        assert pa.types.is_integer(schema.field("part").type)
        assert schema.field("last").type == pa.bool_()
        assert schema.field("tokens").type.value_type == pa.uint16()
        assert pa.types.is_integer(schema.field("bytes").type)


def test_a_larger_vocabulary_is_stored_in_wider_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {
        "name": "wide",
        "pat_str": CL100K_PATTERN,
        "mergeable_ranks": {**GPT2._mergeable_ranks, b"zzyzx": 90_000},
        "special_tokens": {END_OF_TEXT: 100_257},
    }
    tiktoken.list_encoding_names()  # fills the registry
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "wide", lambda: wide)
    folder = write(tmp_path / "corpus", {"a.txt": "zzyzx two", "b.txt": some_text(1)})
    try:
        result = build(tmp_path / "out", folder, tokenizer="wide", validation=0)
        stream = TokenStream(open_dataset(result.dataset), "train", TokenCache(tmp_path / "cache", 10**12))
        tokens = stream.read(0, stream.length).tolist()
    finally:
        references._of_tiktoken.cache_clear()
        tiktoken.registry.ENCODINGS.pop("wide", None)
    (entry,) = pq.read_table(f"{result.dataset}/shards.parquet").to_pylist()
    assert pq.read_schema(f"{result.dataset}/{entry['path']}").field("tokens").type.value_type == pa.uint32()
    encoding = tiktoken.Encoding(**wide)
    documents = [encoding.encode_ordinary(file.read_text()) for file in sorted(folder.iterdir())]
    assert tokens == [*documents[0], 100_257, *documents[1], 100_257]
    assert documents[0][0] == 90_000


def test_the_index_says_what_the_files_hold(mixed: Built) -> None:
    table = pq.read_table(f"{mixed.result.dataset}/shards.parquet")
    promised = {"corpus", "split", "path", "rows", "tokens", "bytes", "row_group_offsets", "hash", "size", "sha256"}
    assert promised <= set(table.column_names)
    for entry in table.to_pylist():
        file = Path(mixed.result.dataset) / entry["path"]
        content, rows = file.read_bytes(), pq.read_table(file).to_pylist()
        assert entry["path"] == f"{entry['split']}/{entry['hash']}.parquet"
        assert (entry["size"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert entry["rows"] == len(rows) > 0
        assert entry["tokens"] == sum(len(row["tokens"]) for row in rows)
        assert entry["bytes"] == sum(row["bytes"] for row in rows)
        assert entry["corpus"] == "corpus"
    listed = {entry["path"] for entry in table.to_pylist()}
    assert listed == {path for path in contents(mixed.result.dataset) if "/" in path}


def test_the_manifest_says_what_the_dataset_is(mixed: Built) -> None:
    folder = Path(mixed.result.dataset)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"format", "id", "tokenizer", "options", "corpora", "index_sha256"} <= set(manifest)
    assert manifest["id"] == folder.name == mixed.result.id
    assert manifest["tokenizer"]["name"] == "gpt2"
    assert manifest["tokenizer"]["vocab_size"] == 50_257
    assert manifest["tokenizer"]["sha256"] == get_tokenizer().sha256
    assert manifest["index_sha256"] == hashlib.sha256((folder / "shards.parquet").read_bytes()).hexdigest()
    (corpus,) = manifest["corpora"].values()
    assert corpus["sources"] == len(mixed.documents) + 1
    assert corpus["dropped"] == {"empty": 4}  # a file, a JSONL line, a null and an empty text of the Parquet file
    rows = rows_of(folder)
    for split in ("train", "validation"):
        of_split = [row for row in rows if row["split"] == split]
        assert corpus["splits"][split]["documents"] == len(of_split)
        assert corpus["splits"][split]["tokens"] == sum(len(row["tokens"]) for row in of_split)
        assert corpus["splits"][split]["bytes"] == sum(row["bytes"] for row in of_split)
    total = sum(len(text.encode()) for texts in mixed.documents.values() for text in texts)
    assert sum(split["bytes"] for split in corpus["splits"].values()) == total


def test_other_readers_open_the_shards(mixed: Built) -> None:
    files = pq.read_table(f"{mixed.result.dataset}/shards.parquet").to_pylist()
    frames = [pandas.read_parquet(f"{mixed.result.dataset}/{entry['path']}") for entry in files]
    assert sum(frame["tokens"].map(len).sum() for frame in frames) == mixed.result.tokens


def test_separators_are_not_stored(mixed: Built) -> None:
    assert not any(50_256 in row["tokens"] for row in rows_of(mixed.result.dataset))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Documents of more than a million characters and tokens, one of them with no place to cut it."""
    root = tmp_path_factory.mktemp("large")
    texts = {"uncut.txt": "7!" * 575_000, **{f"{i}.txt": f"{i}" + " a b\n" * 240_000 for i in range(2)}}
    documents = {name: [text] for name, text in texts.items()}
    folder = write(root / "corpus", texts)
    return Built(build(root / "out", folder, validation=0), folder, root / "out", documents)


def test_large_documents_are_cut_into_parts_of_at_most_a_million_tokens(large: Built) -> None:
    rows = rows_of(large.result.dataset)
    assert max(len(row["tokens"]) for row in rows) <= MILLION
    for name, (text,) in large.documents.items():
        parts = [row for row in rows if row["document_id"] == f"{name}#0"]
        assert len(parts) > 1
        assert [row["part"] for row in parts] == list(range(len(parts)))
        assert [row["last"] for row in parts] == [False] * (len(parts) - 1) + [True]
        assert list(itertools.chain(*(row["tokens"] for row in parts))) == GPT2.encode_ordinary(text)
        assert sum(row["bytes"] for row in parts) == len(text.encode())


def test_row_groups_hold_about_a_million_tokens_and_the_index_finds_them(large: Built, tmp_path: Path) -> None:
    stream = TokenStream(open_dataset(large.result.dataset), "train", TokenCache(tmp_path, 10**12))
    base = 0
    for entry in pq.read_table(f"{large.result.dataset}/shards.parquet").to_pylist():
        file = pq.ParquetFile(f"{large.result.dataset}/{entry['path']}")
        groups = [file.read_row_group(i).to_pylist() for i in range(file.num_row_groups)]
        sizes = [sum(len(row["tokens"]) for row in group) for group in groups]
        assert len(groups) > 1
        assert max(sizes) <= MILLION
        assert min(one + other for one, other in itertools.pairwise(sizes)) > MILLION / 2
        for group, offset in zip(groups, entry["row_group_offsets"], strict=True):
            first = group[0]["tokens"][:5]
            assert stream.read(base + offset, base + offset + 5).tolist() == first
        base += entry["tokens"] + sum(row["last"] for group in groups for row in group)
    assert base == stream.length


# --- where a document may be cut -----------------------------------------------------------------------------


# --- the splits ----------------------------------------------------------------------------------------------


# --- the id and the bytes depend on content only -------------------------------------------------------------


# --- a second run --------------------------------------------------------------------------------------------


# --- killed and completed ------------------------------------------------------------------------------------


# --- what cannot be used -------------------------------------------------------------------------------------


# --- where it cannot be written ------------------------------------------------------------------------------


# --- object storage ------------------------------------------------------------------------------------------
