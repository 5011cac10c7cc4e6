"""Proves that an index of 300,000 shards opens, selects and answers as its Parquet file says, in little memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gptpipe.dataset.index import ShardIndex, index_table
from gptpipe.dataset.rows import ShardFile
from gptpipe.errors import Damaged
from tests.fixtures.datasets import in_threads

ROWS = 300_000
CORPORA = ["web", "books", "code", "wiki", "only-held-out"]
NUMBERS = ["rows", "documents", "tokens", "bytes", "size"]


def some_offsets(count: int) -> list[np.ndarray]:
    """Where row groups begin, of shards with 1 to 19 of them."""
    draw = np.random.default_rng(1)
    sizes = (draw.integers(900_000, 1_000_001, int(draw.integers(0, 19))) for _ in range(count))
    return [np.concatenate([[0], np.cumsum(each)]).astype(np.int64) for each in sizes]


def shard_file(number: int, corpus: str, split: str, offsets: np.ndarray) -> ShardFile:
    digest = f"{number:032x}"
    tokens = int(offsets[-1]) + 5000
    return ShardFile(
        corpus=corpus,
        split=split,
        path=f"{split}/{digest}.parquet",
        rows=100 + number % 7,
        documents=100,
        tokens=tokens - 100,
        bytes=4 * tokens,
        row_group_offsets=offsets,
        hash=digest,
        size=2 * tokens + number,
        sha256=f"{number * 7919:064x}",
    )


@pytest.fixture(scope="module")
def content() -> bytes:
    """Splits one after another, corpora in theirs, as `commit` writes them; one corpus has no training shard."""
    offsets = some_offsets(4093)  # a prime: they meet corpora and splits in every order
    train = ROWS * 9 // 10
    corpora = [CORPORA[i * 4 // train] for i in range(train)] + [
        CORPORA[i * 5 // (ROWS - train)] for i in range(ROWS - train)
    ]
    splits = ["train"] * train + ["validation"] * (ROWS - train)
    files = [shard_file(i, corpora[i], splits[i], offsets[i % len(offsets)]) for i in range(ROWS)]
    return index_table(files)


@pytest.fixture(scope="module")
def path(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("index") / "shards.parquet"
    file.write_bytes(content)
    return file


@pytest.fixture(scope="module")
def naive(path: Path) -> dict[str, Any]:
    """The columns as any Parquet reader finds them."""
    table = pq.ParquetFile(path).read()
    return {name: table.column(name).to_pylist() for name in table.column_names}


@pytest.fixture(scope="module")
def index(content: bytes) -> ShardIndex:
    return ShardIndex.read(content)


def places_of(naive: dict[str, Any], split: str | None, corpus: str | None) -> list[int]:
    both = zip(naive["split"], naive["corpus"], strict=True)
    return [i for i, (s, c) in enumerate(both) if split in (None, s) and corpus in (None, c)]


def in_order(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


SELECTIONS = [(None, None), ("train", None), ("validation", None), ("train", "code"), (None, "books")]


@pytest.mark.parametrize(("split", "corpus"), [*SELECTIONS, ("validation", "only-held-out")])
def test_a_selection_is_what_a_naive_reading_finds(
    index: ShardIndex, naive: dict[str, Any], split: str | None, corpus: str | None
) -> None:
    found, places = index.select(split, corpus), places_of(naive, split, corpus)
    assert len(found) == len(places) > 1000
    assert found.paths() == [naive["path"][i] for i in places]
    assert found.digests() == [naive["sha256"][i] for i in places]
    assert found.sizes.tolist() == [naive["size"][i] for i in places]
    assert found.stream_lengths.tolist() == [naive["tokens"][i] + naive["documents"][i] for i in places]
    assert found.bytes == sum(naive["bytes"][i] for i in places)
    assert found.splits() == sorted({naive["split"][i] for i in places})
    assert found.corpora() == in_order([naive["corpus"][i] for i in places])
    for number in [0, 1, len(found) // 3, len(found) - 1]:
        place = places[number]
        file = found[number]
        assert {name: getattr(file, name) for name in naive if name != "row_group_offsets"} == {
            name: naive[name][place] for name in naive if name != "row_group_offsets"
        }
        assert file.row_group_offsets.dtype == np.int64
        assert file.row_group_offsets.tolist() == naive["row_group_offsets"][place]


@pytest.mark.parametrize(("split", "corpus"), [*SELECTIONS, ("validation", "only-held-out")])
def test_corpus_codes_number_the_corpora_of_the_selection(
    index: ShardIndex, naive: dict[str, Any], split: str | None, corpus: str | None
) -> None:
    found, places = index.select(split, corpus), places_of(naive, split, corpus)
    names = in_order([naive["corpus"][i] for i in places])
    assert found.corpus_codes().tolist() == [names.index(naive["corpus"][i]) for i in places]


@pytest.mark.parametrize(("split", "corpus"), [("test", None), ("train", "only-held-out"), (None, "none")])
def test_a_selection_of_nothing_is_empty(index: ShardIndex, split: str | None, corpus: str | None) -> None:
    found = index.select(split, corpus)
    assert len(found) == found.bytes == 0
    assert list(found) == found.paths() == found.digests() == found.corpora() == found.splits() == []
    assert found.stream_lengths.tolist() == found.corpus_codes().tolist() == []
    assert len(found.select("train")) == 0


def test_selecting_twice_is_selecting_both(index: ShardIndex) -> None:
    assert index.select("train").select(None, "wiki").paths() == index.select("train", "wiki").paths()
    assert len(index.select("train").select("validation")) == 0


def test_threads_that_look_at_the_index_together_get_the_rows_they_asked_for(
    content: bytes, naive: dict[str, Any]
) -> None:
    """`TokenStream.prepare` and the loader look at it from several threads."""
    index = ShardIndex.read(content)

    def look(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, ROWS, 40).tolist():
            assert index[number].sha256 == naive["sha256"][number], f"row {number} is {index[number].path}"

    assert in_threads(*(partial(look, seed) for seed in range(4))) == []


def test_by_hash_and_iteration_give_every_file(index: ShardIndex) -> None:
    small = index.select("validation", "only-held-out")
    assert [file.path for file in small] == small.paths()
    assert sorted(small.by_hash()) == sorted(file.hash for file in small)


def test_writing_what_was_read_gives_the_same_bytes(index: ShardIndex) -> None:
    small = index.select("validation", "web")
    again = index_table(list(small))
    assert index_table(list(ShardIndex.read(again))) == again


def test_the_file_and_the_memory_are_small(path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from gptpipe.dataset.index import ShardIndex
import gptpipe.dataset.stream
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
train = ShardIndex.read(Path(sys.argv[1]).read_bytes()).select("train")
starts = np.concatenate([[0], np.cumsum(train.stream_lengths)])
for number in range(0, len(train), 1000):
    train[number]
print((peak() - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500
    assert path.stat().st_size < 120 * ROWS


@pytest.mark.parametrize("strange", [{"path": "../../x.parquet"}, {"path": "/etc/x.parquet"}, {"sha256": "/home/x"}])
def test_names_that_lead_elsewhere_are_refused(strange: dict[str, str]) -> None:
    good = shard_file(1, "web", "train", np.array([0]))
    index = ShardIndex.read(index_table([good, replace(good, **strange)]))
    assert index[0].path == good.path
    with pytest.raises(Damaged, match="the dataset's index names"):
        index[1]
    with pytest.raises(Damaged, match="the dataset's index names"):
        (index.paths(), index.digests())
