"""A dataset's id: the same for the same content, whoever makes it and where; what is there is not made again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.dataset.dataset import open_dataset
from tests.fixtures.corpora import Built, build, contents, some_text, watching, write


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
