"""Proves that a cache of decoded tokens gives the right tokens whoever else uses it, is killed, or removes from it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptpipe.corpus.build import tokenize
from gptpipe.dataset import cache as cache_module
from gptpipe.dataset.cache import Evicted, PartialShard, TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from tests.fixtures.datasets import Sample, in_threads, read_anywhere

PAGE = 4096
READER = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream

dataset, cache, limit, how, seed, expected, rounds = sys.argv[1:]
expected = np.load(expected)
print("ready", flush=True)
sys.stdin.readline()
draw = np.random.default_rng(int(seed))
for _ in range(int(rounds)):
    stream = TokenStream(open_dataset(dataset), "train", TokenCache(Path(cache), int(limit)))
    if how == "whole":
        stream.prepare()
        assert np.array_equal(stream.read(0, stream.length), expected)
        continue
    for start in draw.integers(0, stream.length - 300, 150).tolist():
        assert np.array_equal(stream.read(start, start + 300), expected[start : start + 300]), start
print("right", flush=True)
"""


class Readers:
    """Processes that read a dataset through one cache folder."""

    def __init__(self, sample: Sample, folder: Path) -> None:
        self.dataset, self.folder = sample.dataset.url, folder
        self.script, self.expected = folder / "reader.py", folder / "expected.npy"
        self.script.write_text(READER)
        np.save(self.expected, sample.tokens)

    def start(self, how: str, seed: int = 0, limit: int = 10**12, rounds: int = 1) -> subprocess.Popen[str]:
        arguments = [self.dataset, self.folder / "cache", limit, how, seed, self.expected, rounds]
        process = subprocess.Popen(
            [sys.executable, str(self.script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def readers(sample: Sample, tmp_path: Path) -> Readers:
    return Readers(sample, tmp_path)


@pytest.fixture
def copied(sample: Sample, tmp_path: Path) -> Dataset:
    """A copy that a test may damage."""
    shutil.copytree(sample.dataset.url, tmp_path / "copy")
    return open_dataset(str(tmp_path / "copy"))


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*.[bp]*"))


def check(stream: TokenStream, sample: Sample) -> None:
    assert np.array_equal(stream.read(0, stream.length), sample.tokens)


# --- together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [pytest.param(10**12, marks=pytest.mark.slow), 150_000], ids=["room", "almost full"])
def test_processes_that_share_a_cache_read_the_right_tokens(readers: Readers, limit: int) -> None:
    kinds = ["part", "part", "whole" if limit > 10**9 else "part"]
    started = [readers.start(how, seed, limit, rounds=4) for seed, how in enumerate(kinds)]
    for process in started:
        go(process)
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "right\n"), err


@pytest.mark.parametrize("how", ["part", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_killed_process_leaves_a_cache_that_reads_right(readers: Readers, sample: Sample, how: str) -> None:
    draw = random.Random(7)
    for attempt in range(5):
        cache = readers.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        process = readers.start(how, attempt, rounds=1000)
        go(process)
        time.sleep(draw.random() * 0.3)
        process.kill()
        process.communicate()
        check(TokenStream(sample.dataset, "train", TokenCache(cache, 10**12)), sample)
        again = TokenStream(sample.dataset, "train", TokenCache(cache, 10**12))
        again.prepare()
        check(again, sample)
        assert not [path for path in cache.rglob("*") if "tmp" in path.name.lower()]


def test_a_shard_that_is_removed_while_it_is_opened_is_opened_again(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes room between any two steps of the opening."""
    for step in range(4):
        cache = TokenCache(tmp_path / f"cache-{step}", 10**12)
        other = TokenCache(tmp_path / f"cache-{step}", 0)
        real, calls = np.memmap, [0]

        def opened(*given: object, **named: object) -> np.ndarray:
            calls[0] += 1  # noqa: B023
            if calls[0] == step:  # noqa: B023
                meanwhile(lambda: other.make_room(1))  # noqa: B023
            found = real(*given, **named)  # type: ignore[call-overload]  # noqa: B023
            return np.asarray(found)

        monkeypatch.setattr(cache_module.np, "memmap", opened)
        check(TokenStream(sample.dataset, "train", cache), sample)
        monkeypatch.undo()


@pytest.mark.slow
def test_a_shard_removed_half_way_through_an_opening_never_shows_what_is_not_decoded(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process opens the tokens, another removes the shard, a third opens it anew: three maps, one set of marks."""
    file, length = _first(sample)
    cache, remover = TokenCache(tmp_path, 10**12), TokenCache(tmp_path, 0)
    arguments = (file, sample.dataset.url, length, np.dtype(np.uint16), 50_256)
    real = np.memmap
    others: list[PartialShard] = []

    def mapped(path: Path, **given: Any) -> np.ndarray:
        if path.suffix != ".groups":
            return np.asarray(real(path, **given))
        monkeypatch.setattr(cache_module.np, "memmap", real)
        meanwhile(lambda: remover.make_room(1))  # the tokens are mapped, the marks are not yet
        marks = np.asarray(real(path, **given))
        meanwhile(lambda: others.append(PartialShard(cache, *arguments)))
        return marks

    monkeypatch.setattr(cache_module.np, "memmap", mapped)
    slow = PartialShard(cache, *arguments)
    other = others[0] if others else PartialShard(cache, *arguments)
    for shard in (slow, other):
        while True:
            try:
                found = shard.decode(0, length)
                break
            except Evicted:
                shard = PartialShard(cache, *arguments)
        assert np.array_equal(found, sample.tokens[:length])


def meanwhile(work: Callable[[], object]) -> None:
    """Let somebody else do it now, or when this thread lets them."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=2)


def _first(sample: Sample) -> tuple[object, int]:
    index = sample.dataset.index("train")
    return index[0], int(index.stream_lengths[0])


def test_threads_of_one_process_may_read_one_stream_while_others_make_room(sample: Sample, tmp_path: Path) -> None:
    stream = TokenStream(sample.dataset, "train", TokenCache(tmp_path, 10**12))
    other = TokenCache(tmp_path, 0)
    until = time.monotonic() + 2

    def make_room() -> None:
        while time.monotonic() < until:
            other.make_room(1)
            time.sleep(0.001)

    reads = [partial(read_anywhere, stream, sample.tokens, 50, until, seed) for seed in (0, 1)]
    assert in_threads(*reads, make_room) == []


def test_what_was_used_least_recently_goes_first(sample: Sample, tmp_path: Path) -> None:
    index = sample.dataset.index("train")
    cache = TokenCache(tmp_path, 10**12)

    def decode(number: int) -> Path:
        time.sleep(0.02)
        file = index[number]
        length = int(index.stream_lengths[number])
        if not cache.has_whole(file, 2 * length):
            cache.decode_whole(file, sample.dataset.url, length, np.dtype(np.uint16), 50_256)
        return cache.whole_path(file)

    paths = [decode(number) for number in range(4)]
    decode(0)  # used again, so now shard 1 is the oldest
    for left, oldest in ((3, 1), (2, 2), (1, 3), (0, 0)):
        full = TokenCache(tmp_path, used(tmp_path))
        assert full.make_room(0) == []
        assert full.make_room(1) == [paths[oldest]]
        assert sum(path.exists() for path in paths) == left


def test_removing_never_breaks_a_reader_that_has_the_shard_mapped(sample: Sample, tmp_path: Path) -> None:
    for prepared in (True, False):
        reader = TokenStream(sample.dataset, "train", TokenCache(tmp_path / str(prepared), 10**12))
        if prepared:
            reader.prepare()
        held = [reader.read(int(reader.starts[i]), int(reader.starts[i + 1])) for i in range(len(reader.index))]
        gone = TokenCache(tmp_path / str(prepared), 0).make_room(0)
        assert len(gone) >= len(held)
        assert np.array_equal(np.concatenate(held), sample.tokens)
        check(reader, sample)
        check(TokenStream(sample.dataset, "train", TokenCache(tmp_path / str(prepared), 10**12)), sample)


def test_reading_with_little_room_stays_within_the_limit_and_is_right(sample: Sample, tmp_path: Path) -> None:
    stream = TokenStream(sample.dataset, "train", TokenCache(tmp_path, 100_000))
    draw = np.random.default_rng(3)
    for start in draw.integers(0, stream.length - 200, 600).tolist():
        assert np.array_equal(stream.read(start, start + 200), sample.tokens[start : start + 200])
        assert used(tmp_path) <= 100_000 + 4 * PAGE


def test_a_dataset_larger_than_the_limit_is_refused(sample: Sample, tmp_path: Path) -> None:
    size = len(sample.tokens) * 2
    TokenStream(sample.dataset, "train", TokenCache(tmp_path / "a", size)).prepare()
    stream = TokenStream(sample.dataset, "train", TokenCache(tmp_path / "b", size - 1))
    with pytest.raises(UserError, match="the train split") as caught:
        stream.prepare()
    assert "GPTPIPE_CACHE_GIGABYTES" in caught.value.hint
    assert caught.value.where == sample.dataset.url
    assert not list((tmp_path / "b").rglob("*.bin"))


def test_preparing_after_some_was_read_stays_within_the_limit(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that make room at the same time do not count the same room twice."""
    real, together = TokenCache.make_room, threading.Barrier(2)

    def make_room(cache: TokenCache, size: int) -> list[Path]:
        gone = real(cache, size)
        with suppress(threading.BrokenBarrierError):
            together.wait(timeout=0.5)
        return gone

    size = len(sample.tokens) * 2 + PAGE * 6
    stream = TokenStream(sample.dataset, "train", TokenCache(tmp_path, size))
    check(stream, sample)
    monkeypatch.setattr(TokenCache, "make_room", make_room)
    stream.prepare()
    assert used(tmp_path) <= size
    assert len(list(tmp_path.rglob("*.bin"))) == len(stream.index)
    check(TokenStream(sample.dataset, "train", TokenCache(tmp_path, size)), sample)


# --- one boot ------------------------------------------------------------------------------------------------


def test_another_boot_s_tokens_are_removed(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(cache_module, "BOOT_ID", boot)
    boot.write_text("first\n")
    TokenStream(sample.dataset, "train", TokenCache(tmp_path / "cache", 10**12)).prepare()
    first = tmp_path / "cache" / "tokens" / "first"
    held = sorted(path.name for path in first.glob("*.bin"))
    assert len(held) == 6
    for damaged in first.glob("*.bin"):  # as after a power failure: the right size, zeros in it
        damaged.write_bytes(bytes(damaged.stat().st_size))
    boot.write_text("second\n")
    again = TokenStream(sample.dataset, "train", TokenCache(tmp_path / "cache", 10**12))
    assert [path.name for path in (tmp_path / "cache" / "tokens").iterdir()] == ["second"]
    again.prepare()
    check(again, sample)


# --- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("how", ["read", "prepare"])
def test_a_damaged_or_missing_shard_is_refused_by_name(
    sample: Sample, copied: Dataset, tmp_path: Path, damage: str, how: str
) -> None:
    stream = TokenStream(copied, "train", TokenCache(tmp_path / "cache", 10**12))
    file = Path(copied.url) / stream.index[2].path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink() if damage == "missing" else file.write_bytes(content[:-1] if damage == "cut" else content)
    begin = int(stream.starts[2])
    assert np.array_equal(stream.read(0, begin), sample.tokens[:begin])
    with pytest.raises(UserError, match="missing" if damage == "missing" else "damaged") as caught:
        stream.prepare() if how == "prepare" else stream.read(begin, begin + 1)
    assert caught.value.where == str(file)
    assert "tokenize again" in caught.value.hint


def test_a_shard_is_read_again_after_it_was_repaired(sample: Sample, copied: Dataset, tmp_path: Path) -> None:
    stream = TokenStream(copied, "train", TokenCache(tmp_path / "cache", 10**12))
    file = Path(copied.url) / stream.index[0].path
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            stream.read(0, 10)
    file.write_bytes(content)
    check(stream, sample)


def _zeros(content: bytes, draw: random.Random) -> bytes:
    return bytes(len(content))


def _noise(content: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(len(content))


def _flip(content: bytes, draw: random.Random) -> bytes:
    """One bit, anywhere."""
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _longer(content: bytes, draw: random.Random) -> bytes:
    return content + b"x"


def _empty(content: bytes, draw: random.Random) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_zeros, _noise, _flip, _cut, _longer, _empty])
@pytest.mark.parametrize("kind", ["bin", "part", "groups"])
def test_a_damaged_cache_is_never_read_and_decoded_again(
    sample: Sample, tmp_path: Path, kind: str, damage: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cache, draw = TokenCache(tmp_path, 10**12), random.Random(5)
    for _ in range(5):
        stream = TokenStream(sample.dataset, "train", cache)
        if kind == "bin":
            stream.prepare()
        check(stream, sample)
        for path in cache.folder.glob(f"*.{kind}"):
            content = path.read_bytes()
            assert content
            path.unlink()  # what is mapped stays as it is, as for another process
            path.write_bytes(damage(content, draw))
        caplog.clear()
        again = TokenStream(sample.dataset, "train", cache)
        starts = [draw.randrange(again.length - 300) for _ in range(50)]
        for start in starts:
            assert np.array_equal(again.read(start, start + 300), sample.tokens[start : start + 300])
        check(again, sample)
        if damage in (_noise, _flip) or (damage is _zeros and kind != "groups"):
            assert f".{kind if kind == 'bin' else 'part'}" in caplog.text, "the damage is told, with its file"
        caplog.clear()
        check(TokenStream(sample.dataset, "train", cache), sample)
        assert not caplog.text, "it is as good as new"


def test_a_cache_that_was_killed_or_evicted_is_not_called_damaged(
    readers: Readers, sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    process = readers.start("part", rounds=1000, limit=150_000)
    go(process)
    cache = readers.folder / "cache"
    for _ in range(30):
        stream = TokenStream(sample.dataset, "train", TokenCache(cache, 150_000))
        check(stream, sample)
    process.kill()
    out, err = process.communicate()
    check(TokenStream(sample.dataset, "train", TokenCache(cache, 10**12)), sample)
    assert "damaged" not in caplog.text + out + err


@pytest.mark.stack
@pytest.mark.parametrize("how", ["read", "prepare"])
def test_a_cold_cache_is_filled_from_an_object_store(sample: Sample, s3_storage: str, tmp_path: Path, how: str) -> None:
    made = open_dataset(tokenize(sample.config, s3_storage).dataset)
    assert made.id == sample.dataset.id
    stream = TokenStream(made, "train", TokenCache(tmp_path, 10**12))
    if how == "prepare":
        stream.prepare()
    check(stream, sample)
    draw = np.random.default_rng(1)
    small = TokenStream(made, "train", TokenCache(tmp_path / "small", 200_000))
    for start in draw.integers(0, small.length - 200, 40).tolist():
        assert np.array_equal(small.read(start, start + 200), sample.tokens[start : start + 200])
