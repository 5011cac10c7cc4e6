"""A dataset made in steps is the one made afresh, and a change costs only itself."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.corpus.build import TokenizeResult
from gptpipe.corpus.fingerprints import Fingerprints
from gptpipe.errors import UserError
from tests.fixtures.corpora import build, contents, documents_of, outcome, some_text, watching, write

STEPS = ["added", "changed", "touched", "renamed", "split", "merged", "removed"]


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
