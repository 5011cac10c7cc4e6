"""Texts, disks and stores that cannot be used are told in a line, and nothing is committed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.corpus.build import tokenize
from gptpipe.corpus.engine import Processes
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.rows import ShardReader
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer
from tests.fixtures.corpora import (
    GPT2,
    MILLION,
    build,
    config,
    contents,
    documents_of,
    outcome,
    refused,
    small_corpora,
    some_text,
    write,
)
from tests.fixtures.environment import begin_again


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


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_no_memory_holds_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr("gptpipe.corpus.jsonl.LONGEST_LINE", 100_000)
    name = "bad.jsonl.gz" if packed else "bad.jsonl"
    content = b'{"text": "good"}\n{"text": "' + b"0" * 3_000_000 + b'"}\n'
    folder = write(tmp_path / "corpus", {"a.txt": some_text(1)})
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    error = refused(tmp_path / "out", folder)
    assert error.message == "a line of more than 100,000 bytes"
    assert error.where == f"{folder / name}, byte 17"


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
    begin_again()
    folder = write(tmp_path / "corpus", {"a.txt": some_text(1)})
    url = "s3://no-such-bucket/texts"
    with pytest.raises(UserError, match="no S3 credentials") as caught:
        build(tmp_path / "out", url) if place == "corpus" else build(url, folder)
    assert caught.value.where.startswith(url)
    assert "GPTPIPE_S3_ACCESS_KEY" in caught.value.hint
