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
from gptpipe.config.settings import Settings
from gptpipe.dataset.rows import ShardFile, ShardReader
from gptpipe.errors import UserError

LIMIT = int(Settings.model_fields["cache_gigabytes"].default * 1e9)  # bytes, where nothing else is said
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class TokenCache:
    """The decoded shards in `<cache>/tokens/<boot>/`, which is made; what another boot has left there is removed.

    Args:
        cache: the folder; by default this machine's.
        limit: bytes that all decoded shards may take together.
    """

    def __init__(self, cache: Path | None = None, limit: int = LIMIT) -> None:
        self.home, self.limit = cache or storage.cache_home(), limit
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else str(round(psutil.boot_time(), -1))
        self.folder = self.home / "tokens" / boot
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)
        storage.sweep_temporaries(str(self.folder))

    def has_whole(self, file: ShardFile, size: int) -> bool:
        """Whether a shard's flat file is there; if so it counts as used now."""
        path = self.whole_path(file)
        with suppress(FileNotFoundError):
            if path.stat().st_size == size:
                os.utime(path)
                return True
        return False

    def whole_path(self, file: ShardFile) -> Path:
        return self.folder / f"{file.sha256}.bin"

    def decode_whole(self, file: ShardFile, dataset: str, length: int, dtype: np.dtype, separator: int) -> None:
        """Write a shard's flat file; the caller has made room for it."""
        reader = ShardReader(read_shard(dataset, file))
        path = self.whole_path(file)
        starts = np.append(file.row_group_offsets, length)
        buffer = np.empty(np.diff(starts).max(), dtype)  # one for all: fresh memory costs as much as decoding into it
        with storage.new_file(path) as temporary, temporary.open("wb") as out:
            for group in range(reader.row_groups):
                out.write(reader.stream(group, separator, buffer).data)
        with self.locked():
            _remove_partial(path.with_suffix(".part"))

    def make_room(self, size: int, keep: Path | None = None) -> list[Path]:
        """Remove the files that were used least recently until `size` more bytes fit; those that went.

        Args:
            keep: a file that stays, whatever the limit says: more of it is about to be decoded.
        """
        with self.locked():
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
                if path == keep:
                    continue
                _remove_partial(path) if path.suffix == ".part" else path.unlink(missing_ok=True)
                taken -= used
                gone.append(path)
            return gone

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process and thread at a time makes or removes files whose two parts belong together."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Evicted(Exception):
    """The cache has removed this shard: it must be opened again before more of it is decoded."""


class PartialShard:
    """A shard of which row groups are decoded as they are asked for, seen by every rank of the host."""

    def __init__(
        self, cache: TokenCache, file: ShardFile, dataset: str, length: int, dtype: np.dtype, separator: int
    ) -> None:
        self._cache, self._file, self._dataset, self._separator = cache, file, dataset, separator
        self.path = cache.folder / f"{file.sha256}.part"
        self._starts = np.append(file.row_group_offsets, length)
        with cache.locked():
            self.tokens = _mapped(self.path, (length,), dtype)
            self._there = _mapped(self.path.with_suffix(".groups"), (len(self._starts) - 1,), np.dtype(np.uint8))
            os.utime(self.path)
            self._inode = self.path.stat().st_ino
        self._lock = threading.Lock()

    @property
    def is_gone(self) -> bool:
        """Whether the cache removed it: what is mapped stays, but takes disk until it is let go."""
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def get(self, start: int, stop: int) -> np.ndarray | None:
        """Tokens `start` to `stop` of the shard's stream, or None when they are not decoded yet."""
        first, last = self._groups(start, stop)
        return self.tokens[start:stop] if self._there[first : last + 1].all() else None

    def decode(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the shard's stream, decoded now where they are not there yet.

        Raises:
            Evicted: the cache has removed the shard.
        """
        first, last = self._groups(start, stop)
        with self._lock:
            missing = [group for group in range(first, last + 1) if not self._there[group]]
            room = sum(int(self._starts[group + 1] - self._starts[group]) for group in missing)
            self._cache.make_room(room * self.tokens.itemsize, keep=self.path)
            if self.is_gone:
                raise Evicted
            reader = ShardReader(read_shard(self._dataset, self._file)) if missing else None
            for group in missing:
                assert reader is not None
                out = self.tokens[int(self._starts[group]) : int(self._starts[group + 1])]
                reader.stream(group, self._separator, out)
                self._there[group] = 1
            with suppress(FileNotFoundError):
                os.utime(self.path)
        part: np.ndarray = self.tokens[start:stop]
        return part

    def _groups(self, start: int, stop: int) -> tuple[int, int]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        return first, int(np.searchsorted(self._starts, stop - 1, side="right")) - 1


def _remove_partial(path: Path) -> None:
    path.with_suffix(".groups").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


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


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A file of that size, mapped for reading and writing; made with holes in it if it is not there."""
    size = int(np.prod(shape)) * dtype.itemsize
    with path.open("ab") as file:
        if file.tell() != size:
            os.ftruncate(file.fileno(), size)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r+", shape=shape))
