"""In object storage everything is as on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptpipe import storage
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from tests.fixtures.corpora import build, contents, remote_contents, some_text, upload, write
from tests.fixtures.environment import begin_again


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
    begin_again()
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
