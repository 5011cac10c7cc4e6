"""Files as local ones: what lies elsewhere is fetched, with progress, resumed where it broke off, and verified."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gptpipe import storage
from gptpipe.config import digest
from gptpipe.errors import Damaged, UserError
from gptpipe.storage.temporary import atomic_link

log = logging.getLogger("gptpipe.progress")
_BLOCK = 8 << 20
_TRIES = 5


@contextmanager
def local_copy(url: str, sha256: str = "", hint: str = "fetch or write it again") -> Iterator[Path]:
    """A file as a local one, while the block runs; what has been opened in it can be read on.

    What `https://` names is kept in `<home>/cache/downloads` for the next time. Of `s3://` nothing is kept.

    Args:
        sha256: what it must be; empty is not known.
        hint: what to do about one that is damaged.

    Raises:
        UserError: it is not there or cannot be fetched. Damaged: it is not what it must be.
    """
    if storage.is_local(url):
        path = storage.local_path(url)
        if sha256 and _sha256_of(path, url) != sha256:
            raise _damaged(url, hint)
        yield path
    elif url.startswith(("https://", "http://")):
        yield _downloaded(url, sha256, hint)
    else:
        cache = storage.cache_home()
        cache.mkdir(parents=True, exist_ok=True)
        storage.sweep_temporaries(str(cache), below=False)  # what killed processes left
        with atomic_link(cache / "fetched") as path, path.open("x+b") as file:
            state = hashlib.sha256()
            _fetch(url, file, storage.describe(url).size, state)
            file.flush()
            if sha256 and state.hexdigest() != sha256:
                raise _damaged(url, hint)
            yield path


def _downloaded(url: str, sha256: str, hint: str) -> Path:
    """A file of the cache, fetched by one process while others wait for it; one that is damaged is fetched again."""
    entry = storage.describe(url)
    folder = storage.cache_home() / "downloads" / digest([url, entry.version, entry.size])[:32]
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    checksum = folder / ".checksum"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists() and not (checksum.exists() and checksum.read_bytes() == _crc32_of(place)):
            log.warning("the cache is damaged, and what it held is fetched again: %s", place)
            place.unlink()
        if not place.exists():
            partial = folder / ".partial"
            with partial.open("ab") as file:
                _fetch(url, file, entry.size)
            if sha256 and _sha256_of(partial, url) != sha256:
                partial.unlink()
                raise _damaged(url, hint)
            checksum.write_bytes(_crc32_of(partial))
            partial.rename(place)
    return place


def _fetch(url: str, file: IO[bytes], size: int, state: Any = None) -> None:
    """Append what a file does not have yet. A connection that breaks is made again where it broke."""
    fs, path = storage.filesystem(url)
    name, began, said, tries = url.rsplit("/", 1)[-1], time.monotonic(), time.monotonic(), 0
    while file.tell() < size:
        try:
            with storage.explained(url), fs.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as source:
                source.seek(file.tell())
                while block := source.read(_BLOCK):
                    file.write(block)
                    if state is not None:
                        state.update(block)
                    tries = 0
                    if time.monotonic() - said > 1:
                        said = time.monotonic()
                        rate = file.tell() / 1e6 / (said - began)
                        done = f"{file.tell() / 1e6:,.0f} of {size / 1e6:,.0f} MB"
                        log.info("fetching %s: %s, %.0f MB/s", name, done, rate, extra={"progress": True})
            if file.tell() < size:
                raise UserError("ended before its end", where=url, hint="try again")
        except UserError:
            tries += 1
            if tries == _TRIES:
                raise
            time.sleep(tries)
    if file.tell() > size:
        raise _damaged(url, "try again")


def _sha256_of(path: Path, url: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError("no such file", where=url, hint="give the path of one that is there") from None


def _crc32_of(path: Path) -> bytes:
    """The CRC-32 of a file and its size: quicker than SHA-256, and enough against a disk's faults."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
        return f"{value:08x} {file.tell()}".encode()


def _damaged(url: str, hint: str) -> Damaged:
    return Damaged("damaged: its size or SHA-256 is not what it should be", where=url, hint=hint)
