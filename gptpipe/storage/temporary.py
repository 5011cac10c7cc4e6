"""Local files that appear whole or not at all: written under a temporary name that says who writes them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptpipe.processes import is_running
from gptpipe.storage.faults import explained
from gptpipe.storage.home import scratch_home
from gptpipe.storage.urls import is_local, local_path

_TEMPORARY = re.compile(r"^\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}-")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of that name is only being written, or was left by a killed process."""
    return _TEMPORARY.match(name) is not None


def _temporary(path: Path) -> Path:
    """A name beside `path` that says who made it, so that what a killed process left is known."""
    return path.parent / f".tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, flushed to disk, when the block ends well."""
    with explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            take_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well; a power failure may lose it."""
    with explained(str(path)):
        temporary = _temporary(path)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def take_place(temporary: Path, path: Path) -> None:
    """Put a file in its place, its content and its name flushed to the disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _flush_folder(path.parent)


@contextmanager
def scratch_folder(url: str) -> Iterator[Path]:
    """A local folder, gone at the end, for files that `move_file` puts below a folder URL."""
    with explained(url, writing=True):
        folder = _temporary((local_path(url) if is_local(url) else scratch_home()) / "scratch")
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def passing_folder() -> Iterator[Path]:
    """A folder among the machine's temporary files, gone at the end; what killed processes left of such is removed."""
    place = Path(tempfile.gettempdir())
    sweep_temporaries(str(place), below=False)
    folder = _temporary(place / "gptpipe")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_link(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, removed at the end."""
    temporary = _temporary(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def made_once(path: Path) -> Iterator[Path | None]:
    """A temporary path beside `path` that takes its place when the block ends well; None where it is made already.

    One process makes it while others wait, so that none of them has opened a file that another one then replaces. An
    empty file counts as none.
    """
    with explained(str(path), writing=True):
        if _has_content(path):
            yield None
            return
        lock = path.parent / f".{path.name}.lock"
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _has_content(path):
                yield None
                return
            sweep_temporaries(str(path.parent), below=False)
            with new_file(path) as temporary:
                yield temporary
            lock.unlink()  # whoever waits for it sees the file, and so does whoever comes later


def _has_content(path: Path) -> bool:
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.exists() and path.stat().st_size > 0


def sweep_temporaries(url: str, *, below: bool = True) -> None:
    """Remove what processes of this machine that no longer live left half-written in a local folder.

    What another user's process left there, and cannot be removed, stays.
    """
    if not is_local(url):
        return
    for folder, folders, names in os.walk(local_path(url)):
        for name in folders + names:
            match = _TEMPORARY.match(name)
            if match and match["host"] == socket.gethostname() and not is_running(int(match["pid"])):
                left = Path(folder) / name
                if name in folders:
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    with suppress(PermissionError):
                        left.unlink(missing_ok=True)
        folders[:] = [name for name in folders if below and not is_temporary(name)]
