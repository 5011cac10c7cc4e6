"""Bytes of a source, whole or a range of it, unpacked, and checked to be those that were planned."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from gptpipe import storage
from gptpipe.corpus.sources import Source
from gptpipe.errors import UserError

_BLOCK = 1 << 20


class _Hashing(io.RawIOBase):
    """A stream that hashes what is read from it, in order."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.state = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self.state.update(data)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_whole(source: Source) -> Iterator[IO[bytes]]:
    """The unpacked content from the beginning.

    Raises:
        UserError: the file is gone, is cut off, or is not what was planned (seen when the block ends).
    """
    with _opened(source) as raw:
        hashing = _Hashing(raw)
        with unpacked(source):
            yield cast(IO[bytes], io.BufferedReader(_unpack(source, hashing), _BLOCK))
        while block := hashing.read(_BLOCK):
            del block  # what stands behind the packed data belongs to the file too
        if source.sha256 and hashing.state.hexdigest() != source.sha256:
            raise changed(source)


def read_small(source: Source) -> bytes:
    """The content of a source that is not packed and fits into memory, as it was planned."""
    try:
        content = storage.read_bytes(source.url)
    except FileNotFoundError:
        raise gone(source) from None
    if source.sha256 and hashlib.sha256(content).hexdigest() != source.sha256:
        raise changed(source)
    return content


@contextmanager
def open_range(source: Source, start: int) -> Iterator[IO[bytes]]:
    """The content of a source that is not packed, from a byte on, to be read anywhere. It must stay as planned.

    Raises:
        UserError: the file is gone, or was changed.
    """
    if is_web(source):
        with local_copy(source).open("rb") as raw:
            raw.seek(start)
            yield raw
        return
    with _opened(source) as raw:
        raw.seek(start)
        check_version(source)
        yield raw
        check_version(source)


def is_web(source: Source) -> bool:
    """Whether it comes from a web server, which need not know ranges."""
    return source.url.startswith(("http://", "https://"))


def local_copy(source: Source) -> Path:
    """A source of the web, fetched once for all processes of this machine; `remove_copies` removes it."""
    path = _copies() / source.sha256
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.new_file(path) as temporary, temporary.open("wb") as out, open_whole(source) as stream:
            shutil.copyfileobj(stream, out, _BLOCK)
    return path


def remove_copies() -> None:
    shutil.rmtree(_copies(), ignore_errors=True)


def _copies() -> Path:
    return storage.scratch_home() / "web"


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    try:
        stream = storage.open_read(source.url)
    except FileNotFoundError:
        raise gone(source) from None
    with stream, storage.explained(source.url):
        yield stream


def check_version(source: Source) -> None:
    """A UserError when the source is not the file that was planned, by what its storage says of it."""
    try:
        now = storage.describe(source.url)
    except FileNotFoundError:
        raise gone(source) from None
    if (now.size, now.version) != (source.size, source.version):
        raise changed(source)


def gone(source: Source) -> UserError:
    return UserError("the file is gone", where=source.url, hint="it was there when the run began; run again")


def changed(source: Source) -> UserError:
    return UserError("the file changed while it was read", where=source.url, hint="run again when it is at rest")


def _unpack(source: Source, raw: _Hashing) -> Any:
    if not source.packing:
        return raw
    return _Unpacking(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), source.packing))


class _Unpacking(io.RawIOBase):
    """Arrow's stream, which closes what it reads from, as a Python one, which does not."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def unpacked(source: Source) -> Iterator[None]:
    """Turn what a decompressor raises into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if not source.packing:
            raise
        raise UserError(
            f"not a whole {source.packing} file ({error})",
            where=source.url,
            hint="fetch or make it again; nothing of it was used",
        ) from None
