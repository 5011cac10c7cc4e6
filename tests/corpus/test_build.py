"""Proves that a dataset holds its texts' tokens, is decided by content alone, and survives kills and bad input."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe import storage
from gptpipe.config import DataConfig
from gptpipe.config.settings import reload_settings
from gptpipe.corpus import cuts
from gptpipe.corpus.build import TokenizeResult, tokenize
from gptpipe.corpus.engine import Processes
from gptpipe.corpus.fingerprints import Fingerprints
from gptpipe.corpus.shards import split_by_position
from gptpipe.corpus.split import split_of
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.rows import ShardReader
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.tokenizer import END_OF_TEXT, get_tokenizer, references

MILLION = 1_000_000
GPT2 = get_tokenizer().encoding
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def config(*corpus: object, **options: Any) -> DataConfig:
    corpora: Any = [str(url) for url in corpus]
    return DataConfig(**{"corpus": corpora, "validation": 0.2, "workers": 1, **options})


def build(out: object, *corpus: object, **options: Any) -> TokenizeResult:
    return tokenize(config(*corpus, **options), str(out))


def outcome(out: object, *corpus: object, **options: Any) -> TokenizeResult | UserError:
    """What a build that may be refused comes to."""
    try:
        return build(out, *corpus, **options)
    except UserError as error:
        return error


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by relative path."""
    root = Path(folder)
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def rows_of(dataset: str | Path) -> list[dict[str, Any]]:
    """All rows of a dataset as any Parquet reader finds them, in the order of its index, with their split."""
    found = []
    for entry in pq.read_table(f"{dataset}/shards.parquet").to_pylist():
        rows = pq.read_table(f"{dataset}/{entry['path']}").to_pylist()
        found += [{**row, "split": entry["split"], "corpus": entry["corpus"]} for row in rows]
    return found


def documents_of(dataset: str | Path) -> dict[str, list[int]]:
    """The tokens of every document, its parts put together."""
    found: dict[str, list[int]] = {}
    for row in rows_of(dataset):
        found.setdefault(row["document_id"], []).extend(row["tokens"])
    return found


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8", newline="")
    return folder


def some_text(seed: int, characters: int = 300) -> str:
    draw = random.Random(seed)
    words = ["the", "Gisburn", "painted", "1906,", "naïve", "漢字", "\n", "  indent", "it's", "(x)", "🙂", "a"]
    text = f"{seed} "
    while len(text) < characters:
        text += " ".join(draw.choices(words, k=50)) + " "
    return text[:characters]


@dataclass
class Opened:
    """The files below `folder` that this process opened, whichever code did it."""

    folder: Path
    files: list[str]


_watching: list[Opened] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        for opened in _watching:
            with suppress(ValueError):
                opened.files.append(Path(arguments[0]).relative_to(opened.folder).as_posix())


sys.addaudithook(_watch)


@contextmanager
def watching(folder: Path) -> Iterator[list[str]]:
    opened = Opened(folder, [])
    _watching.append(opened)
    try:
        yield opened.files
    finally:
        _watching.remove(opened)


# --- what a dataset is ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """A dataset made of every kind of source, and the documents that went in, by file."""

    result: TokenizeResult
    folder: Path
    out: Path
    documents: dict[str, list[str]]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Text, JSONL and Parquet in folders, with duplicates, an empty file, an empty text and a null."""
    root = tmp_path_factory.mktemp("mixed")
    texts = {
        "a.txt": "naïve café\r\n漢字 🙂‍🙃 \u00a0 end",
        "sub/b.md": f"before{END_OF_TEXT}after\n\n\n  ",
        "sub/deep/c.py": "def main():\n\treturn  1\n",
        "hash#1.txt": some_text(1),
        "twin-1.txt": some_text(2),
        "twin-2.txt": some_text(2),
        **{f"more/{i}.txt": some_text(i) for i in range(10, 40)},
    }
    folder = write(root / "corpus", texts)
    documents = {name: [text] for name, text in texts.items()}
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfwith a byte order mark")
    documents["bom.txt"] = ["with a byte order mark"]
    (folder / "empty.txt").touch()
    documents["lines.jsonl"] = [f"line {i} " + some_text(i) for i in range(100, 120)] + ["漢 one line"]
    lines = [json.dumps({"n": i, "text": text}) for i, text in enumerate(documents["lines.jsonl"])]
    lines = [*lines[:3], "", '{"text": ""}', *lines[3:-1], json.dumps({"text": "漢 one line"}, ensure_ascii=False)]
    (folder / "lines.jsonl").write_text("\r\n".join(lines), "utf-8", newline="")
    documents["rows.parquet"] = ["first", "", "third 漢", "", "fifth"]
    table = pa.table({"id": range(5), "text": ["first", None, "third 漢", "", "fifth"]})
    pq.write_table(table, folder / "rows.parquet", row_group_size=2)
    return Built(build(root / "out", folder, validation=0.3), folder, root / "out", documents)


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
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
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

nasty = st.lists(
    st.sampled_from([" ", "  ", "\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\x0b", "\u2028", "\x85", "\u200b"])
    | st.sampled_from(["a", "Z", "word", "It's", "'ll", "'S", "ſ", "'ſ", "é", "e\u0301", "ΑΒγ", "漢", "ǅ", "ʰ"])
    | st.sampled_from(
        ["1", "1234", "٣", "²", ".", "...", "_\n", ".\r\n", "é \n", "/", "//\n", "🙂", "\u200d", "\x00", END_OF_TEXT]
    )
    | st.text(max_size=4),
    max_size=40,
).map("".join)


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k"])
def encoding(request: pytest.FixtureRequest) -> tiktoken.Encoding:
    """The patterns of OpenAI's encodings over GPT-2's ranks: the pattern decides where a token may end."""
    pattern = {"gpt2": GPT2._pat_str, "cl100k": CL100K_PATTERN, "o200k": O200K_PATTERN}[request.param]
    return tiktoken.Encoding(
        request.param, pat_str=pattern, mergeable_ranks=GPT2._mergeable_ranks, special_tokens={END_OF_TEXT: 50_256}
    )


def pieces_of(text: str, cell: int, safe: Any) -> list[str]:
    """The pieces of a text cut at cells of that many bytes."""
    with mock.patch.object(cuts, "CELL", cell):
        return [piece.data.decode() for piece in cuts.cut(io.BytesIO(text.encode()), safe)]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@given(text=nasty, limit=st.integers(1, 40))
@settings(max_examples=400)
def test_pieces_have_the_tokens_of_the_whole_wherever_it_is_cut(
    encoding: tiktoken.Encoding, text: str, limit: int
) -> None:
    pieces = pieces_of(text, limit, cuts.SAFE_IN_GPT2 if encoding.name == "gpt2" else cuts.SAFE_ANYWHERE)
    assert "".join(pieces) == text
    words = list(itertools.chain(*(regex.findall(encoding._pat_str, piece) for piece in pieces)))
    assert words == regex.findall(encoding._pat_str, text)  # whatever the ranks then merge
    together = list(itertools.chain(*(encoding.encode_ordinary(piece) for piece in pieces)))
    assert together == encoding.encode_ordinary(text)


@given(words=st.lists(st.text("abcXYZ", min_size=1, max_size=9), min_size=1, max_size=60), limit=st.integers(12, 40))
def test_ordinary_text_is_cut_at_the_first_safe_place_of_every_cell(words: list[str], limit: int) -> None:
    text = " ".join(words)
    pieces = pieces_of(text, limit, cuts.SAFE_ANYWHERE)
    places = list(itertools.accumulate(map(len, pieces)))[:-1]
    wanted = {text.find(" ", n) for n in range(limit, len(text), limit)} - {-1}
    assert places == sorted(wanted)


@given(text=nasty, limit=st.integers(1, 20), step=st.integers(1, 5))
@settings(max_examples=300)
def test_ranges_read_apart_hold_the_pieces_of_the_whole(text: str, limit: int, step: int) -> None:
    data = text.encode()
    with mock.patch.object(cuts, "CELL", limit):
        whole = list(cuts.cut(io.BytesIO(data), cuts.SAFE_ANYWHERE))
        found: list[cuts.Piece] = []
        for start in range(0, len(data), step * limit):
            stream = io.BytesIO(data)
            stream.seek(cuts.first_byte(start))
            stop = start + step * limit if start + step * limit < len(data) else None
            found += cuts.cut(stream, cuts.SAFE_ANYWHERE, start, stop)
    assert found == whole


def test_text_without_a_place_to_cut_stays_whole() -> None:
    assert pieces_of("1" * 500, 10, cuts.SAFE_ANYWHERE) == ["1" * 500]
    assert pieces_of("", 10, cuts.SAFE_ANYWHERE) == []
    assert pieces_of("1" * 50 + "word and", 10, cuts.SAFE_ANYWHERE) == ["1" * 50, "word and"]


# --- the splits ----------------------------------------------------------------------------------------------


def test_one_document_is_split_by_position_as_in_the_lecture(lecture_text: Path, tmp_path: Path) -> None:
    result = build(tmp_path, lecture_text, validation=0.1)
    text = lecture_text.read_text("utf-8")
    cut = int(0.9 * len(text))
    splits = {row["split"]: row["tokens"] for row in rows_of(result.dataset)}
    assert splits["train"] == GPT2.encode_ordinary(text[:cut])
    assert splits["validation"] == GPT2.encode_ordinary(text[cut:])
    assert result.documents == 1


@given(st.text(min_size=1, max_size=300))
def test_a_split_by_position_loses_nothing_and_trains_on_the_first_nine_tenths(text: str) -> None:
    pieces = {split: (start, piece) for split, start, piece in split_by_position(text, 0.1)}
    cut = int(0.9 * len(text))
    assert pieces.get("train", (0, ""))[1] == text[:cut]
    assert pieces.get("validation", (0, ""))[1] == text[cut:]
    assert pieces["validation"][0] == len(text[:cut].encode())


def test_without_validation_one_document_is_all_training(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"a.txt": some_text(1)})
    result = build(tmp_path / "out", folder, validation=0)
    assert [row["split"] for row in rows_of(result.dataset)] == ["train"]
    assert documents_of(result.dataset) == {"a.txt#0": GPT2.encode_ordinary(some_text(1))}


def splits_of(dataset: str) -> dict[str, set[str]]:
    """The sides that each text is found on."""
    found: dict[str, set[str]] = {}
    for row in rows_of(dataset):
        found.setdefault(GPT2.decode(row["tokens"]), set()).add(row["split"])
    return found


def test_copies_of_a_text_are_on_one_side_and_later_texts_move_none(tmp_path: Path) -> None:
    texts = [some_text(i, 40) for i in range(400)]
    folder = write(tmp_path / "corpus", {f"{i}.txt": text for i, text in enumerate(texts)})
    lines = "".join(json.dumps({"text": text}) + "\n" for text in reversed(texts))
    write(folder, {"copies.jsonl": lines, "copies-again.jsonl": lines})
    before = splits_of(build(tmp_path / "out", folder).dataset)
    assert set(before) == set(texts)
    assert all(len(sides) == 1 for sides in before.values())
    assert 0.12 < sum(sides == {"validation"} for sides in before.values()) / 400 < 0.28
    write(folder, {f"new-{i}.txt": some_text(1000 + i) for i in range(50)})
    (folder / "copies.jsonl").unlink()
    after = splits_of(build(tmp_path / "out", folder).dataset)
    assert {text: after[text] for text in texts} == before


def test_a_larger_share_of_validation_only_adds_to_it() -> None:
    texts = [some_text(i, 30) for i in range(300)]
    small = {text for text in texts if split_of(digest_of(text), 0.1) == "validation"}
    large = {text for text in texts if split_of(digest_of(text), 0.3) == "validation"}
    assert small < large
    assert {split_of(digest_of(text), 0.0) for text in texts} == {"train"}


@pytest.mark.parametrize("kind", ["files", "lines"])
@pytest.mark.parametrize("share", [1e-9, 0.1, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 8])
def test_few_documents_are_on_both_sides_whatever_the_share(
    tmp_path: Path, kind: str, share: float, count: int
) -> None:
    for seed in range(2):
        texts = [f"note {seed} {i}: some words" for i in range(count)]
        if kind == "files":
            files = {f"{i}.txt": text for i, text in enumerate(texts)}
        else:
            files = {"all.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)}
        result = build(tmp_path / "out", write(tmp_path / f"corpus-{seed}", files), validation=share)
        assert set(result.splits) == {"train", "validation"}
        assert set(splits_of(result.dataset)) == set(texts)
        again = build(tmp_path / "out", tmp_path / f"corpus-{seed}", validation=share)
        assert again.already_done


def test_a_text_that_was_trained_on_is_never_validated_on_as_few_documents_grow(tmp_path: Path) -> None:
    folder, trained, said = tmp_path / "corpus", set[str](), set[str]()
    for number in range(60):
        write(folder, {f"{number}.txt": f"note {number}: some words"})
        if number < 1:
            continue
        sides = splits_of(build(tmp_path / "out", folder).dataset)
        validated = {text for text, found in sides.items() if found == {"validation"}}
        assert validated
        assert not validated & trained
        trained |= set(sides) - validated
        said.add("below" if "validation_below" in open_dataset(str(tmp_path / "out")).options else "hash")
    assert said == {"below", "hash"}  # both rules were in use


def test_what_was_done_for_few_documents_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = write(tmp_path / "corpus", {"a.txt": "one", "b.txt": "two"})
    build(tmp_path / "out", folder, validation=1e-9)
    assert "would leave one split empty: 1 document for training, 1 document for validation" in caplog.text


# --- the id and the bytes depend on content only -------------------------------------------------------------


def test_another_place_time_and_number_of_workers_give_the_same_id_and_bytes(mixed: Built, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "another" / "name"
    shutil.copytree(mixed.folder, moved)
    for i, file in enumerate(sorted(moved.rglob("*"))):
        os.utime(file, (i, i))
    expected = contents(mixed.result.dataset)
    for workers, corpus in ((1, moved), (1, f"{moved}/**/*"), (3, f"{mixed.folder}/")):
        result = build(tmp_path / f"out-{workers}-{len(str(corpus))}", corpus, validation=0.3, workers=workers)
        assert result.id == mixed.result.id
        assert contents(result.dataset) == expected
        assert result.shards_written > 0


def test_several_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    corpora = [write(tmp_path / f"c{c}", {f"{i}.txt": some_text(10 * c + i) for i in range(5)}) for c in range(4)]
    one, two = build(tmp_path / "one", *corpora), build(tmp_path / "two", *corpora, workers=2)
    assert one.id == two.id
    assert contents(one.dataset) == contents(two.dataset)


def test_the_id_of_a_fixed_corpus_is_pinned(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"a.txt": "one two three", "sub/b.txt": "four five six", "c.txt": ""})
    assert build(tmp_path / "out", folder, validation=0).id == "d965c55c5c98bd46669fc293c80d4995"


def test_everything_that_decides_the_content_decides_the_id(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(30)})
    other = write(tmp_path / "other", {"a.txt": some_text(99)})
    ids = [build(tmp_path / "out", folder).id]
    ids.append(build(tmp_path / "out", folder, validation=0.3).id)
    ids.append(build(tmp_path / "out", folder, other).id)
    ids.append(build(tmp_path / "out", other, folder).id)
    (folder / "0.txt").rename(folder / "renamed.txt")
    ids.append(build(tmp_path / "out", folder).id)
    (folder / "1.txt").write_text("changed")
    ids.append(build(tmp_path / "out", folder).id)
    assert len(set(ids)) == len(ids)
    assert build(tmp_path / "elsewhere", folder, workers=3).id == ids[-1]


# --- a second run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["files", "one text", "one jsonl", "one parquet"])
def test_a_second_run_is_already_done_and_reads_no_text(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    if kind == "files":
        write(folder, {f"{i}.txt": some_text(i) for i in range(30)})
    elif kind == "one text":
        write(folder, {"a.txt": some_text(1)})
    elif kind == "one jsonl":
        write(folder, {"a.jsonl": "".join(json.dumps({"text": some_text(i)}) + "\n" for i in range(30))})
    else:
        pq.write_table(pa.table({"text": [some_text(i) for i in range(30)]}), folder / "a.parquet")
    first = build(tmp_path / "out", folder)
    before = contents(tmp_path / "out")
    with watching(folder) as opened:
        second = build(tmp_path / "out", folder)
    assert (first.already_done, second.already_done) == (False, True)
    assert second.shards_written == 0
    assert {**second.as_dict(), "already_done": 0, "megabytes_per_second": 0, "shards_written": 0} == {
        **first.as_dict(), "already_done": 0, "megabytes_per_second": 0, "shards_written": 0
    }  # fmt: skip
    assert contents(tmp_path / "out") == before
    assert opened == []


@pytest.mark.parametrize("change", ["its twin is removed", "its name says that it holds lines"])
def test_the_only_source_is_split_as_if_nothing_had_been_there_before(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "corpus"
    line = json.dumps({"text": some_text(1)}) + "\n"
    if change == "its twin is removed":
        write(folder, {"a.jsonl": line, "b.jsonl": line})
        build(tmp_path / "out", folder, validation=0)
        (folder / "b.jsonl").unlink()
    else:
        write(folder, {"a.txt": "".join(json.dumps({"text": some_text(i)}) + "\n" for i in range(30))})
        build(tmp_path / "out", folder, validation=0)
        (folder / "a.txt").rename(folder / "a.jsonl")
    made = build(tmp_path / "out", folder, validation=0)
    fresh = build(tmp_path / "fresh", folder, validation=0)
    assert made.id == fresh.id
    assert contents(made.dataset) == contents(fresh.dataset)


def test_the_folder_of_datasets_means_the_one_asked_for_last(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, {"a.txt": some_text(i)}) for i, name in enumerate(("one", "two")))
    results = [build(tmp_path / "out", corpus) for corpus in (one, two, one)]
    assert results[2].already_done
    assert open_dataset(str(tmp_path / "out")).id == results[0].id


@dataclass(frozen=True)
class Step:
    """A change of the corpus, the dataset made from the one before it, and one made afresh."""

    before: TokenizeResult
    made: TokenizeResult
    fresh: TokenizeResult
    opened: set[str]


def in_the_first_half(name: str) -> str:
    """A path like `name` whose hash begins with a zero bit: it falls into the first bucket of two."""
    names = (name.replace(".", f"-{i}.") for i in range(100))
    return next(path for path in names if hashlib.sha256(path.encode()).digest()[0] < 128)


# the largest files that still share a bucket: together they push the first one over its limit
FIRST, SECOND = in_the_first_half("6/first.txt"), in_the_first_half("5/second.txt")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """300 files, changed again and again in one place; every dataset made in steps and afresh."""
    root = tmp_path_factory.mktemp("steps")
    stock = some_text(0, 400_000)
    folder = write(root / "corpus", {f"{i % 7}/{i}.txt": f"{i} {stock[i * 900 : i * 900 + 5500]}" for i in range(300)})
    write(folder, {FIRST: "first " * 18_000})
    (folder / "bad.txt").write_bytes(b"\xff not UTF-8")

    def add() -> None:
        write(folder, {"3/added.txt": some_text(1, 5000)})

    def change() -> None:
        write(folder, {"3/45.txt": some_text(2, 5000)})

    def touch() -> None:
        os.utime(folder / "3" / "45.txt", (1, 1))

    def rename() -> None:
        (folder / "4" / "4.txt").rename(folder / "4" / "renamed.txt")

    def split() -> None:
        write(folder, {SECOND: "second " * 15_500})

    def merge() -> None:
        (folder / FIRST).unlink()

    def remove() -> None:
        (folder / "0" / "0.txt").unlink()

    def make(out: str) -> TokenizeResult:
        return build(root / out, folder, errors="skip", shard_megabytes=1)

    found = {}
    before = make("out")
    for name, act in {
        "added": add, "changed": change, "touched": touch, "renamed": rename, "split": split, "merged": merge,
        "removed": remove,
    }.items():  # fmt: skip
        act()
        with watching(folder) as opened:
            made = make("out")
        found[name] = Step(before, made, make(f"fresh-{name}"), {file for file in opened if file.endswith(".txt")})
        before = made
    return found


STEPS = ["added", "changed", "touched", "renamed", "split", "merged", "removed"]


@pytest.mark.parametrize("name", STEPS)
def test_a_dataset_made_in_steps_is_the_one_made_afresh(steps: dict[str, Step], name: str) -> None:
    step = steps[name]
    assert step.made.id == step.fresh.id
    assert (step.made.id == step.before.id) is (name == "touched")
    assert contents(step.made.dataset) == contents(step.fresh.dataset)
    assert step.made.dropped == {"not UTF-8": 1}


@pytest.mark.parametrize("name", STEPS)
def test_a_change_reads_what_changed_and_nothing_else(steps: dict[str, Step], name: str) -> None:
    new = {
        "added": {"3/added.txt"},
        "changed": {"3/45.txt"},
        "touched": {"3/45.txt"},
        "renamed": {"4/renamed.txt"},
        "split": {SECOND},
    }
    assert steps[name].opened == new.get(name, set())


@pytest.mark.parametrize("name", STEPS)
def test_a_change_writes_at_most_two_shards_and_links_the_others(steps: dict[str, Step], name: str) -> None:
    step = steps[name]
    hashes = [
        {entry["hash"] for entry in pq.read_table(f"{result.dataset}/shards.parquet").to_pylist()}
        for result in (step.before, step.made)
    ]
    written = hashes[1] - hashes[0]
    most = 3 if name == "renamed" else 2  # a renamed file leaves one shard and enters another
    assert len(written) == step.made.shards_written <= most
    assert bool(written) is (name != "touched")
    assert len(hashes[1]) >= 2
    for file in Path(step.made.dataset).glob("*/*.parquet"):
        if file.stem not in written:
            assert file.samefile(Path(step.before.dataset) / file.relative_to(step.made.dataset))


def test_the_steps_did_split_and_merge_a_bucket(steps: dict[str, Step]) -> None:
    def shards(result: TokenizeResult) -> int:
        return len({path.stem for path in Path(result.dataset).glob("*/*.parquet")})

    assert shards(steps["split"].made) == shards(steps["split"].before) + 1
    assert shards(steps["merged"].made) == shards(steps["merged"].before) - 1


def test_a_large_file_of_lines_and_its_small_neighbours_keep_to_themselves(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": some_text(i, 2000)}) + "\n" for i in range(900))
    folder = write(tmp_path / "corpus", {"large.jsonl": lines, **{f"{i}.txt": some_text(i) for i in range(40)}})
    build(tmp_path / "out", folder, shard_megabytes=1)
    write(folder, {"0.txt": "changed"})
    with watching(folder) as opened:
        made = build(tmp_path / "out", folder, shard_megabytes=1)
    assert set(opened) - {"."} == {"0.txt"}
    assert contents(made.dataset) == contents(build(tmp_path / "fresh", folder, shard_megabytes=1).dataset)


def test_another_dataset_made_in_between_costs_no_second_reading(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(30)})
    other = write(tmp_path / "other", {f"{i}.txt": some_text(100 + i) for i in range(30)})
    build(tmp_path / "out", folder)
    build(tmp_path / "out", other)
    write(folder, {"added.txt": some_text(50)})
    with watching(folder) as opened:
        build(tmp_path / "out", folder)
    assert set(opened) - {"."} == {"added.txt"}


@pytest.mark.parametrize("change", ["another file", "the same file"])
def test_an_altered_shard_of_an_earlier_dataset_is_not_passed_on(tmp_path: Path, change: str) -> None:
    corpora = [write(tmp_path / f"c{c}", {f"{i}.txt": some_text(10 * c + i) for i in range(5)}) for c in range(2)]
    earlier = build(tmp_path / "out", *corpora, validation=0)
    entry = pq.read_table(f"{earlier.dataset}/shards.parquet").to_pylist()[0]
    file = Path(earlier.dataset) / entry["path"]
    table = pq.read_table(file)
    tokens = table.column("tokens").to_pylist()
    tokens[0][0] ^= 1
    kind = table.schema.field("tokens")
    pq.write_table(table.set_column(3, kind, pa.array(tokens, kind.type)), file, compression="zstd")
    write(corpora[0 if change == "the same file" else 1], {"added.txt": some_text(99)})
    made = outcome(tmp_path / "out", *corpora, validation=0)
    if isinstance(made, UserError):
        assert entry["path"] in made.where
        return
    fresh = build(tmp_path / "fresh", *corpora, validation=0)
    assert documents_of(made.dataset) == documents_of(fresh.dataset)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped"])
def test_damaged_fingerprints_cost_only_a_second_hashing(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(30)})
    expected = build(tmp_path / "out", folder)
    (file,) = (tmp_path / "out").glob(".fingerprints*")
    content = file.read_bytes()
    cases = {"absent": [None], "empty": [b""], "cut": [content[: len(content) // 2]]}.get(damage) or [
        content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :] for i in range(3, len(content), 41)
    ]
    for case in cases:
        file.unlink(missing_ok=True)
        if case is not None:
            file.write_bytes(case)
        assert build(tmp_path / "out", folder).id == expected.id


def test_remembered_fingerprints_are_right_or_forgotten_whichever_byte_is_flipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(3)})
    build(tmp_path / "out", folder)
    (file,) = (tmp_path / "out").glob(".fingerprints*")
    content, right = file.read_bytes(), Fingerprints(str(tmp_path / "out"))._known
    assert len(right) >= 3  # the files, and shards that were written
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert Fingerprints(str(tmp_path / "out"))._known.items() <= right.items(), place


# --- killed and completed ------------------------------------------------------------------------------------

# Runs in a process of its own, which forks one child a kill: the child counts what it does to files below its
# folder and kills itself at the given one, before it happens or with a file half written. So every instant
# between two of them is tried.
KILLS = """
import json, os, signal, sys, hashlib
from pathlib import Path
import pyarrow.dataset
from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.tokenizer import get_tokenizer

root, corpora = Path(sys.argv[1]), sys.argv[2:]
config = DataConfig(corpus=corpora, validation=0.3, workers=1)
gpt2 = get_tokenizer("gpt2")
gpt2.encode_array("warm"), gpt2.sha256, gpt2.byte_lengths  # so that the children need not
left, below = None, ""

def count(event, arguments):
    global left
    if left is not None and event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
        if str(arguments[0]).startswith(below):
            left -= 1
            if left < 0:
                left = None
                if event == "open" and "w" in str(arguments[1]):  # die in the middle of writing it
                    torn = os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.write(torn, b"torn")
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)

def run(out, kill_at=None):
    global left, below
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        left, below = kill_at, str(out)
        result = tokenize(config, str(out))
        left = None
        os.write(writing, json.dumps(result.as_dict()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if status == 0 else -status

def state(out):
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

def dataset(files):
    return {path: digest for path, digest in files.items() if "/" in path}

whole = run(root / "whole")
expected = dataset(state(root / "whole"))
print(json.dumps({"expected": sorted(expected), "shards": whole["shards_written"]}))
kill_at = 0
while True:
    out = root / f"kill-{kill_at}"
    killed = run(out, kill_at)
    seen = state(out) if out.exists() else {}
    done = run(out)
    after = state(out)
    print(json.dumps({
        "kill_at": kill_at,
        "killed": killed == -9,
        "present": sorted(seen),
        "whole": {path: seen.get(path) for path in expected} == expected,
        "written": done["shards_written"],
        "equal": dataset(after) == expected,
        "after": sorted(after),
        "id": done["id"] == whole["id"],
    }), flush=True)
    if killed != -9:
        break
    kill_at += 1
out, kills = root / "again-and-again", 0
for kill_at in [k for k in range(8, kill_at, 7) for _ in range(2)]:
    kills += run(out, kill_at) == -9
run(out)
print(json.dumps({"kills": kills, "equal": dataset(state(out)) == expected, "after": sorted(state(out))}))
"""


def small_corpora(root: Path, count: int) -> list[str]:
    files = {f"{i}.txt": i for i in range(6)}
    return [
        str(write(root / f"c{c}", {name: some_text(100 * c + i) for name, i in files.items()})) for c in range(count)
    ]


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What was found after a kill at every instant, and after completing it."""
    root = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", KILLS, str(root / "out"), *small_corpora(root, 2)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_build_killed_at_any_instant_and_completed_is_the_undisturbed_one(kills: list[dict[str, Any]]) -> None:
    attempts = kills[1:-1]
    assert len(attempts) > 30
    assert all(attempt["killed"] for attempt in attempts[:-1])
    assert not attempts[-1]["killed"]
    assert [attempt["kill_at"] for attempt in attempts if not (attempt["equal"] and attempt["id"])] == []


def test_no_manifest_is_seen_before_everything_else_is_there(kills: list[dict[str, Any]]) -> None:
    committed = [any(path.endswith("/manifest.json") for path in attempt["present"]) for attempt in kills[1:-1]]
    assert committed == sorted(committed)  # first never, then always
    assert committed[-2]
    assert [a["kill_at"] for a, seen in zip(kills[1:-1], committed, strict=True) if seen and not a["whole"]] == []


def test_shards_that_were_complete_are_not_made_again(kills: list[dict[str, Any]]) -> None:
    shards = kills[0]["shards"]
    assert shards == 2
    complete = {}
    for attempt in kills[1:-1]:
        files = [Path(path) for path in attempt["present"] if not Path(path).name.startswith(".")]
        if not any(file.name == "manifest.json" for file in files):
            names = [{file.name for file in files if file.parent.name == split} for split in ("train", "validation")]
            there = names[0] & names[1]
            complete[attempt["kill_at"]] = len(there)
            assert attempt["written"] == shards - len(there)
    assert set(complete.values()) == {0, 1, 2}


def test_a_build_killed_again_and_again_still_ends(kills: list[dict[str, Any]]) -> None:
    assert kills[-1]["kills"] >= 5
    assert kills[-1]["equal"]


def test_nothing_half_written_is_left_behind(kills: list[dict[str, Any]]) -> None:
    left = {path for attempt in kills[1:] for path in attempt["after"] if ".tmp" in path}
    assert sorted(path.rsplit("-", 1)[1] for path in left) == []


# Makes shards on processes and stops in the middle, until it is killed from outside.
STALLS = """
import sys
from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.corpus.engine import Processes

class Stalling(Processes):
    def run(self, work, tasks):
        for number, report in enumerate(super().run(work, tasks), 1):
            if number == 2:
                print("in the middle", flush=True)
                sys.stdin.read()
            yield report

if __name__ == "__main__":
    tokenize(DataConfig(corpus=sys.argv[2:], validation=0.3, workers=2), sys.argv[1], Stalling(2))
"""


def test_a_parallel_build_killed_from_outside_is_completed_and_its_workers_end(tmp_path: Path) -> None:
    corpora = small_corpora(tmp_path, 6)
    expected = build(tmp_path / "whole", *corpora, validation=0.3)
    script = tmp_path / "stalls.py"
    script.write_text(STALLS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(script), str(tmp_path / "out"), *corpora]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"in the middle\n"
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=5)
    for left in alive:
        left.kill()
    assert not list((tmp_path / "out").rglob("manifest.json"))
    done = build(tmp_path / "out", *corpora, validation=0.3)
    assert done.shards_written < expected.shards_written
    assert contents(done.dataset) == contents(expected.dataset)
    assert [left.pid for left in alive] == [], "the workers of a killed build live on"


# --- what cannot be used -------------------------------------------------------------------------------------


def refused(out: Path, *corpus: object, **options: Any) -> UserError:
    """The error of a build that must fail, after which nothing may be committed."""
    with pytest.raises(UserError) as caught:
        build(out, *corpus, **options)
    assert not list(out.rglob("manifest.json"))
    assert not list(out.rglob("latest.json"))
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "content", "where", "message"),
    [
        ("bad.txt", b"good\nand \xe9 bad", "bad.txt", "byte 9 is not UTF-8"),
        ("bad.txt", b"\xef\xbb\xbfgood \xff", "bad.txt", "byte 8 is not UTF-8"),
        ("bad.txt", "utf-16".encode("utf-16"), "bad.txt", "byte 0 is not UTF-8"),
        ("bad.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}\n', "bad.jsonl, line 2", "byte 25 is not UTF-8"),
        ("bad.jsonl", b'{"text": "ok"}\n\n{"body": "no text"}\n', "bad.jsonl, line 3", "field 'text' is missing"),
        ("bad.jsonl", b'{"text": "ok"}\n{"text": 3}\n', "bad.jsonl, line 2", "field 'text' is not text"),
        ("bad.jsonl", b'{"text": "ok"}\n{"text": "br\n', "bad.jsonl, line 2", "not JSON"),
        ("bad.jsonl", b'["text"]\n', "bad.jsonl, line 1", "not an object"),
        ("bad.jsonl", b'{"text": "half \\ud83d"}\n', "bad.jsonl, line 1", "surrogate"),
        ("bad.jsonl", b"[" * 100_000 + b"\n", "bad.jsonl, line 1", "not JSON"),
        ("bad.parquet", b"no parquet", "bad.parquet", "not a Parquet file"),
    ],
)
def test_bad_text_is_refused_by_its_place(tmp_path: Path, name: str, content: bytes, where: str, message: str) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    (folder / name).write_bytes(content)
    error = refused(tmp_path / "out", folder)
    assert error.where == str(folder / where)
    assert message in error.message
    (folder / name).unlink()
    assert build(tmp_path / "out", folder).documents == 20


@pytest.mark.parametrize(("errors", "texts"), [("replace", ["b\ufffdd", "j\ufffdn"]), ("skip", [])])
def test_bad_bytes_are_replaced_or_skipped_and_counted_when_asked(
    tmp_path: Path, errors: str, texts: list[str]
) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    (folder / "bad.txt").write_bytes(b"b\xe9d")
    (folder / "bad.jsonl").write_bytes(b'{"text": "j\xffn"}\n{"text": "good"}\n')
    result = build(tmp_path / "out", folder, errors=errors)
    expected = {some_text(i) for i in range(20)} | {"good", *texts}
    assert {GPT2.decode(tokens) for tokens in documents_of(result.dataset).values()} == expected
    assert result.dropped == ({"not UTF-8": 2} if errors == "skip" else {})


def parquet(folder: Path, **columns: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "bad.parquet")
    return folder


def test_a_parquet_file_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    error = refused(tmp_path / "out", parquet(tmp_path / "corpus", title=["a", "b"], body=["c", "d"]))
    assert error.where == str(tmp_path / "corpus" / "bad.parquet")
    assert "'title', 'body'" in error.hint
    assert "data.text_field" in error.hint
    assert build(tmp_path / "out", tmp_path / "corpus", text_field="body", validation=0).documents == 2


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"], [["a"], ["b"]], [{"a": "b"}] * 2, [1.5, None]], ids=str)
def test_a_parquet_column_that_is_not_text_is_refused_by_its_type(tmp_path: Path, values: list[Any]) -> None:
    error = refused(tmp_path / "out", parquet(tmp_path / "corpus", text=values))
    assert error.where == str(tmp_path / "corpus" / "bad.parquet")
    assert "not text" in error.message


@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
def test_parquet_text_that_is_not_utf8_is_treated_as_asked(tmp_path: Path, errors: str) -> None:
    offsets, data = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 4, 7))), pa.py_buffer(b"goodb\xe9d")
    folder = parquet(tmp_path / "corpus", text=pa.Array.from_buffers(pa.string(), 2, [None, offsets, data]))
    if errors == "strict":
        error = refused(tmp_path / "out", folder, errors=errors)
        assert error.where.startswith(str(folder / "bad.parquet"))
        assert "UTF-8" in error.message
        return
    result = build(tmp_path / "out", folder, errors=errors, validation=0)
    found = [GPT2.decode(tokens) for tokens in documents_of(result.dataset).values()]
    assert found == (["good", "b\ufffdd"] if errors == "replace" else ["good"])
    assert result.dropped == ({"not UTF-8": 1} if errors == "skip" else {})


def test_a_damaged_parquet_file_is_refused_by_name_and_never_breaks_the_run(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "corpus", text=[some_text(i) for i in range(40)])
    file = folder / "bad.parquet"
    content = file.read_bytes()
    outcomes = []
    for position in range(0, len(content), len(content) // 25):
        file.write_bytes(content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :])
        found = outcome(tmp_path / f"out-{position}", folder, validation=0)
        if isinstance(found, UserError):
            assert found.where.startswith(str(file))
        outcomes.append("refused" if isinstance(found, UserError) else "read")
    assert "refused" in outcomes


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a.txt": "one", "b.txt": "one"}, {"validation": 1e-9}, "all of 2 documents are the same text"),
        ({"a.txt": "one", "b.txt": "one"}, {"validation": 1 - 1e-9}, "train split would be empty"),
        ({"a.txt": "x"}, {"validation": 0.1}, "train split would be empty"),
        ({"a.jsonl": '{"text": ""}\n', "b.jsonl": "\n"}, {}, "no document with text"),
    ],
)
def test_a_split_without_text_is_refused(
    tmp_path: Path, files: dict[str, str], options: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path / "corpus", files)
    error = refused(tmp_path / "out", folder, **options)
    assert message in error.message
    assert str(folder) in error.where


def test_a_corpus_without_files_or_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    assert "no file matches" in refused(tmp_path / "out", tmp_path / "corpus").message
    (tmp_path / "corpus" / "a.txt").touch()
    assert "empty" in refused(tmp_path / "out", tmp_path / "corpus").message
    assert "no file matches" in refused(tmp_path / "out", tmp_path / "*.md").message


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"a.txt": some_text(1)})
    assert refused(tmp_path / "out", folder, tokenizer="gpt-two").where == "data.tokenizer"


def test_an_error_in_a_worker_process_arrives_as_it_was(tmp_path: Path) -> None:
    corpora = small_corpora(tmp_path, 4)
    (Path(corpora[2]) / "3.txt").write_bytes(b"ab\xff")
    error = refused(tmp_path / "out", *corpora, workers=2)
    assert error.where == f"{corpora[2]}/3.txt"
    assert "byte 2 is not UTF-8" in error.message


def test_a_file_whose_name_is_not_utf8_is_taken_or_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "wb") as file:  # noqa: PTH123
        file.write(some_text(99).encode())
    found = outcome(tmp_path / "out", folder)
    if isinstance(found, UserError):
        assert "caf" in found.where
    else:
        assert found.documents == 21


@pytest.mark.parametrize(("act", "message"), [("change", "changed"), ("remove", "gone")])
def test_a_file_that_changes_while_it_is_read_is_refused_by_name(tmp_path: Path, act: str, message: str) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    file = folder / "7.txt"

    class Disturbing(Processes):
        def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
            file.unlink() if act == "remove" else file.write_text(some_text(99))
            yield from super().run(work, tasks)

    with pytest.raises(UserError, match=message) as caught:
        tokenize(config(folder), str(tmp_path / "out"), Disturbing(2))
    assert caught.value.where == str(file)
    assert not list((tmp_path / "out").rglob("manifest.json"))
    made = build(tmp_path / "out", folder)
    assert contents(made.dataset) == contents(build(tmp_path / "fresh", folder).dataset)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_document_of_200_megabytes_is_whole(tmp_path: Path, kind: str) -> None:
    text = "".join(some_text(i) for i in range(40))
    text *= 1 + 200 * MILLION // len(text.encode())
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / f"large.{kind}").write_text(text if kind == "txt" else json.dumps({"text": text}) + "\n", "utf-8")
    (folder / "small.txt").write_text("A small one beside it.")
    made = build(tmp_path / "out", folder, validation=0)
    assert made.documents == 2
    dataset = open_dataset(made.dataset)
    assert dataset.total("bytes") == len(text.encode()) + len("A small one beside it.")
    tokenizer, found, lasts = get_tokenizer("gpt2"), hashlib.sha256(), []
    for path in dataset.index().paths():
        for row in ShardReader(Path(dataset.url, path).read_bytes()).rows():
            if row.path.startswith("large"):
                assert len(row.tokens) <= MILLION
                found.update(tokenizer.decode(row.tokens.tolist()).encode())
                lasts.append(row.last)
    assert found.digest() == hashlib.sha256(text.encode()).digest()
    assert lasts == [False] * (len(lasts) - 1) + [True]


# --- where it cannot be written ------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_nothing_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    error = refused(tmp_path / "out", folder)
    assert "no space left" in error.message
    assert str(tmp_path / "out") in error.where
    monkeypatch.setattr(os, "fsync", real)
    made = build(tmp_path / "out", folder)
    assert contents(made.dataset) == contents(build(tmp_path / "fresh", folder).dataset)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of its own with 64 KB, and a way to mount it again with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting is refused here: {made.stderr.strip()}")
    try:
        yield (
            disk,
            lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True) and None,
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_truly_full_and_a_read_only_disk_are_told_and_the_build_goes_on_later(
    tmp_path: Path, small_disk: tuple[Path, Callable[[str], None]]
) -> None:
    disk, remount = small_disk
    corpora = small_corpora(tmp_path, 4)
    write(Path(corpora[3]), {"large.txt": "".join(some_text(i, 2000) for i in range(100))})
    error = refused(disk / "out", *corpora)
    assert "no space left" in error.message
    assert error.where.startswith(str(disk))
    assert not [file for file in disk.rglob(".tmp*") if file.is_file()]
    remount("ro")
    assert refused(disk / "out", *corpora).where.startswith(str(disk))
    remount("rw,size=16m")
    made = build(disk / "out", *corpora)
    assert made.shards_written < 4
    assert contents(made.dataset) == contents(build(tmp_path / "fresh", *corpora).dataset)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who is not root: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_or_read_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = write(root / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
        (root / "out").mkdir()
        for path in (root, root / "out"):
            path.chmod(0o555)
        with unprivileged():
            error = refused(root / "out", folder)
        assert error.where.startswith(str(root / "out"))
        assert "permission" in str(error).lower()
        (folder / "7.txt").chmod(0)
        (root / "out").chmod(0o777)
        with unprivileged():
            error = refused(root / "out", folder)
        assert error.where == str(folder / "7.txt")
        root.chmod(0o755)


@pytest.mark.parametrize("place", ["corpus", "out"])
def test_object_storage_without_credentials_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("GPTPIPE_S3_ENDPOINT", "http://127.0.0.1:9")
    reload_settings()
    folder = write(tmp_path / "corpus", {"a.txt": some_text(1)})
    url = "s3://no-such-bucket/texts"
    with pytest.raises(UserError, match="no S3 credentials") as caught:
        build(tmp_path / "out", url) if place == "corpus" else build(url, folder)
    assert caught.value.where.startswith(url)
    assert "GPTPIPE_S3_ACCESS_KEY" in caught.value.hint


# --- object storage ------------------------------------------------------------------------------------------


def upload(folder: Path, url: str) -> None:
    for name, content in contents(folder).items():
        storage.write_bytes(f"{url}/{name}", content)


def remote_contents(url: str) -> dict[str, bytes]:
    return {entry.path: storage.read_bytes(entry.url) for entry in storage.list_files(url)}


@pytest.mark.stack
def test_in_object_storage_everything_is_as_on_a_disk(s3_storage: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    other = write(tmp_path / "other", {f"{i}.txt": some_text(100 + i) for i in range(3)})
    corpora, out = [f"{s3_storage}/corpus", f"{s3_storage}/other"], f"{s3_storage}/out"
    upload(folder, corpora[0])
    upload(other, corpora[1])
    here, there = build(tmp_path / "out", folder, other), build(out, *corpora)
    assert there.id == here.id
    assert there.dataset == f"{out}/{here.id}"
    assert remote_contents(there.dataset) == contents(here.dataset)
    assert build(out, *corpora).already_done
    storage.write_bytes(f"{corpora[0]}/added.txt", some_text(99).encode())
    write(folder, {"added.txt": some_text(99)})
    made, fresh = build(out, *corpora), build(tmp_path / "fresh", folder, other)
    assert made.shards_written == 1
    assert remote_contents(made.dataset) == contents(fresh.dataset)
    assert open_dataset(out).id == made.id


@pytest.mark.stack
def test_a_stream_reads_from_object_storage_and_names_a_damaged_object(s3_storage: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    made, here = build(s3_storage, folder), build(tmp_path / "out", folder)
    streams = [
        TokenStream(open_dataset(result.dataset), "train", TokenCache(tmp_path / f"cache-{i}", 10**12))
        for i, result in enumerate((made, here))
    ]
    assert streams[0].read(0, streams[0].length).tolist() == streams[1].read(0, streams[1].length).tolist()
    shard = f"{made.dataset}/{streams[0].index[0].path}"
    content = bytearray(storage.read_bytes(shard))
    content[len(content) // 2] ^= 1
    storage.write_bytes(shard, bytes(content))
    with pytest.raises(UserError, match="damaged") as caught:
        TokenStream(open_dataset(made.dataset), "train", TokenCache(tmp_path / "cache", 10**12)).read(0, 1)
    assert caught.value.where == shard


@pytest.mark.stack
def test_keys_that_the_object_store_does_not_know_are_told(
    s3_storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    monkeypatch.setenv("GPTPIPE_S3_SECRET_KEY", "wrong")
    reload_settings()
    for act in (lambda: build(s3_storage, folder), lambda: build(tmp_path / "out", s3_storage)):
        with pytest.raises(UserError) as caught:
            act()
        assert caught.value.where.startswith(s3_storage)
        assert "GPTPIPE_S3_SECRET_KEY" in caught.value.hint


@pytest.mark.stack
def test_of_two_exclusive_writes_the_second_is_refused_and_changes_nothing(s3_storage: str) -> None:
    assert storage.create_exclusive(f"{s3_storage}/lease.json", b"first")
    assert not storage.create_exclusive(f"{s3_storage}/lease.json", b"second")
    assert storage.read_bytes(f"{s3_storage}/lease.json") == b"first"


@pytest.mark.stack
def test_a_bucket_that_is_not_there_is_told(s3_storage: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {f"{i}.txt": some_text(i) for i in range(20)})
    with pytest.raises(UserError) as caught:
        build("s3://absent-bucket/out", folder)
    assert caught.value.where.startswith("s3://absent-bucket/out")
