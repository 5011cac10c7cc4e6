"""Decoded tokens on the local disk, shared by all ranks and runs of a host, within a bound.

A shard's tokens lie in a flat file named by the shard's SHA-256, whole (`.bin`) or as far as its row groups were
asked for (`.part`, with a byte a row group in `.groups` that says which are there). A file takes its place whole,
and a row group is marked after its tokens are written, so a process can be killed anywhere. What a power failure
would leave is not trusted: the folder belongs to one boot of the machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil

from gptpipe import storage
from gptpipe.data.rows import ShardFile, ShardReader
from gptpipe.errors import UserError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class TokenCache:
    """The decoded shards in `<cache>/tokens/<boot>/`.

    Args:
        limit: bytes that all decoded shards may take together.
    """

    def __init__(self, cache: Path, limit: int) -> None:
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else str(round(psutil.boot_time(), -1))
        self.folder, self.limit = cache / "tokens" / boot, limit
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)
        storage.sweep_temporaries(str(self.folder))

    def whole(self, file: ShardFile, dataset: str, length: int, dtype: np.dtype, separator: int) -> Path:
        """The flat file of a whole shard, decoded now if it is not there."""
        path = self.folder / f"{file.sha256}.bin"
        size = length * dtype.itemsize
        if _size(path) == size:
            os.utime(path)
            return path
        reader = ShardReader(read_shard(dataset, file))
        self.make_room(size)
        with storage.new_file(path) as temporary, temporary.open("wb") as out:
            for group in range(reader.row_groups):
                reader.stream(group, separator).tofile(out)
        return path

    def make_room(self, size: int) -> list[Path]:
        """Remove the files that were used least recently until `size` more bytes fit; those that went."""
        with self._locked():
            files = []
            for path in self.folder.glob("*.[bp]*"):
                with suppress(FileNotFoundError):
                    state = path.stat()
                    files.append((state.st_mtime_ns, state.st_blocks * 512, path))
            taken = sum(used for _, used, _ in files)
            gone = []
            for _, used, path in sorted(files):
                if taken + size <= self.limit:
                    break
                path.with_suffix(".groups").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                taken -= used
                gone.append(path)
            return gone

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class PartialShard:
    """A shard of which row groups are decoded as they are asked for, seen by every rank of the host."""

    def __init__(
        self, cache: TokenCache, file: ShardFile, dataset: str, length: int, dtype: np.dtype, separator: int
    ) -> None:
        self._cache, self._file, self._dataset, self._separator = cache, file, dataset, separator
        self.path = cache.folder / f"{file.sha256}.part"
        self._starts = np.append(file.row_group_offsets, length)
        self.tokens = _mapped(self.path, (length,), dtype)
        self._there = _mapped(self.path.with_suffix(".groups"), (len(self._starts) - 1,), np.dtype(np.uint8))
        self._lock = threading.Lock()
        os.utime(self.path)

    @property
    def is_gone(self) -> bool:
        """Whether the cache removed it: what is mapped stays, but takes disk until it is let go."""
        return not self.path.exists()

    def have(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the shard's stream, decoded if they are not there."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop - 1, side="right")) - 1
        if not self._there[first : last + 1].all():
            self._decode([group for group in range(first, last + 1) if not self._there[group]])
        part: np.ndarray = self.tokens[start:stop]
        return part

    def _decode(self, groups: list[int]) -> None:
        with self._lock:
            reader = ShardReader(read_shard(self._dataset, self._file))
            for group in groups:
                begin, end = int(self._starts[group]), int(self._starts[group + 1])
                self._cache.make_room((end - begin) * self.tokens.itemsize)
                self.tokens[begin:end] = reader.stream(group, self._separator)
                self._there[group] = 1


def read_shard(dataset: str, file: ShardFile) -> bytes:
    """The bytes of a shard file, as the index says they are.

    Raises:
        UserError: it is gone or damaged.
    """
    url = storage.join(dataset, file.path)
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError("a shard is missing", where=url, hint="tokenize again: it is made again") from None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise UserError(
            "a shard is damaged: its SHA-256 is not the one in the index",
            where=url,
            hint="tokenize again: it is made again",
        )
    return content


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A file of that size, mapped for reading and writing; made with holes in it if it is not there."""
    size = int(np.prod(shape)) * dtype.itemsize
    with path.open("ab") as file:
        if file.tell() != size:
            os.ftruncate(file.fileno(), size)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r+", shape=shape))
