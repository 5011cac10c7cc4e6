"""Decoded tokens on the local disk, shared by all ranks and runs of a host, within a bound.

A shard's tokens lie in a flat file named by the shard's SHA-256, whole (`.bin`, the row groups' checksums at its end)
or as far as its row groups were asked for (`.part`, the checksums of those that are there in `.groups`). A file takes
its place whole, and a row group's checksum is written after its tokens, so a process can be killed anywhere. A process
compares a row group with its checksum before it first uses it, and decodes it again where they differ. What a power
failure would leave is not trusted: the folder belongs to one boot of the machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil

from gptpipe import storage
from gptpipe.config.settings import Settings
from gptpipe.dataset.rows import ShardFile, ShardReader
from gptpipe.errors import UserError

log = logging.getLogger(__name__)

LIMIT = int(Settings.model_fields["cache_gigabytes"].default * 1e9)  # bytes, where nothing else is said
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CHECKSUM = np.dtype("<u8")  # CRC-32, and a bit above it by which none is 0: that is a row group that is not there


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
        """Whether a shard's flat file of `size` bytes of tokens is there; if so it counts as used now."""
        path = self.whole_path(file)
        with suppress(FileNotFoundError):
            if path.stat().st_size == size + len(file.row_group_offsets) * CHECKSUM.itemsize:
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
        checksums = []
        with storage.new_file(path) as temporary, temporary.open("wb") as out:
            for group in range(reader.row_groups):
                tokens = reader.stream(group, separator, buffer)
                out.write(tokens.data)
                checksums.append(checksum(tokens))
            out.write(np.array(checksums, CHECKSUM).data)
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


class _Shard:
    """A shard's tokens, mapped, of which each row group is used only after it was compared with its checksum."""

    is_whole = False

    def __init__(self, path: Path, file: ShardFile, length: int) -> None:
        self.path = path
        self._starts = [*file.row_group_offsets.tolist(), length]
        self._known = bytearray(len(self._starts) - 1)  # row groups that were compared in this process
        self._is_told = False
        self.tokens: np.ndarray
        self._checksums: np.ndarray

    def get(self, start: int, stop: int) -> np.ndarray | None:
        """Tokens `start` to `stop` of the shard's stream, or None when they are not known to be right yet."""
        first = bisect_right(self._starts, start) - 1
        known = self._known[first]
        if known and stop > self._starts[first + 1]:  # seldom: a row group has a million tokens
            known = 0 not in self._known[first : self._groups(start, stop)[1] + 1]
        return self.tokens[start:stop] if known else None

    def _groups(self, start: int, stop: int) -> tuple[int, int]:
        return bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1) - 1

    def _group(self, group: int) -> np.ndarray:
        part: np.ndarray = self.tokens[self._starts[group] : self._starts[group + 1]]
        return part

    def _differing(self, start: int, stop: int) -> list[int]:
        """The row groups of these tokens that are not there, or differ from their checksum; the latter is told."""
        first, last = self._groups(start, stop)
        missing = []
        for group in range(first, last + 1):
            if self._known[group]:
                continue
            mark = int(self._checksums[group])  # read before the tokens, as another process writes it after them
            if mark and mark == checksum(self._group(group)):
                self._known[group] = 1
                continue
            missing.append(group)
            if (mark or self.is_whole) and not self._is_told:
                self._is_told = True
                log.warning("the cache is damaged, and what it held is decoded again: %s", self.path)
        return missing


class WholeShard(_Shard):
    """A shard that was decoded as a whole.

    Raises:
        FileNotFoundError: it was not. ValueError: its file was cut off by somebody.
    """

    is_whole = True

    def __init__(self, cache: TokenCache, file: ShardFile, length: int, dtype: np.dtype) -> None:
        super().__init__(cache.whole_path(file), file, length)
        size, marks = length * dtype.itemsize, len(file.row_group_offsets) * CHECKSUM.itemsize
        content = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r", shape=(size + marks,)))
        self.tokens = content[:size].view(dtype)
        self._checksums = np.frombuffer(content[size:].tobytes(), CHECKSUM)

    def verify(self, start: int, stop: int) -> bool:
        """Whether the row groups of these tokens are as they were decoded. A file in which one is not is removed."""
        if not self._differing(start, stop):
            return True
        self.path.unlink(missing_ok=True)
        return False


class PartialShard(_Shard):
    """A shard of which row groups are decoded as they are asked for, seen by every rank of the host."""

    def __init__(
        self, cache: TokenCache, file: ShardFile, dataset: str, length: int, dtype: np.dtype, separator: int
    ) -> None:
        super().__init__(cache.folder / f"{file.sha256}.part", file, length)
        self._cache, self._file, self._dataset, self._separator = cache, file, dataset, separator
        with cache.locked():
            self.tokens = _mapped(self.path, (length,), dtype)
            self._checksums = _mapped(self.path.with_suffix(".groups"), (len(self._starts) - 1,), CHECKSUM)
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

    def decode(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the shard's stream, decoded now where they are not there yet.

        Raises:
            Evicted: the cache has removed the shard.
        """
        with self._lock:
            missing = self._differing(start, stop)
            room = sum(len(self._group(group)) for group in missing)
            self._cache.make_room(room * self.tokens.itemsize, keep=self.path)
            if self.is_gone:
                raise Evicted
            reader = ShardReader(read_shard(self._dataset, self._file)) if missing else None
            for group in missing:
                assert reader is not None
                self._checksums[group] = checksum(reader.stream(group, self._separator, self._group(group)))
                self._known[group] = 1
            with suppress(FileNotFoundError):
                os.utime(self.path)
        part: np.ndarray = self.tokens[start:stop]
        return part


def checksum(content: np.ndarray) -> int:
    """Of an array's bytes, never 0."""
    return zlib.crc32(np.ascontiguousarray(content).data) | 1 << 32


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
