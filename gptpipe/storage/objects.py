"""Reading, writing, listing and removing what a URL names. Every write is all-or-nothing.

A local file is written under a temporary name beside its place, flushed to the disk and renamed; an object is
put whole. So a reader sees the old content, the new content or nothing, whatever is killed and whenever.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from gptpipe.errors import Damaged, UserError
from gptpipe.storage.faults import explained
from gptpipe.storage.listing import Entry
from gptpipe.storage.local import Local
from gptpipe.storage.remote import Remote, filesystem
from gptpipe.storage.temporary import is_temporary
from gptpipe.storage.urls import is_local, join, normalize


class Store(Protocol):
    """What the local file system and object stores both do; faults come out as their layer raises them."""

    def exists(self, url: str) -> bool: ...

    def open_read(self, url: str) -> IO[bytes]: ...

    def read(self, url: str, *, small: bool) -> bytes: ...

    def write(self, url: str, data: bytes) -> None: ...

    def open_write(self, url: str) -> AbstractContextManager[IO[bytes]]: ...

    def put(self, path: Path, url: str) -> None: ...

    def move(self, path: Path, url: str) -> None: ...

    def copy(self, source: str, target: str) -> None: ...

    def create(self, url: str, data: bytes) -> bool: ...

    def files(self, url: str, passed_over: list[str] | None) -> list[Entry]: ...

    def children(self, url: str) -> list[tuple[str, bool]]: ...

    def describe(self, url: str, name: str) -> Entry: ...

    def remove(self, url: str) -> None: ...

    def remove_tree(self, url: str) -> None: ...

    def remove_if_empty(self, url: str) -> None: ...


_LOCAL, _REMOTE = Local(), Remote()


def _store(url: str) -> Store:
    return _LOCAL if is_local(url) else _REMOTE


def exists(url: str) -> bool:
    with explained(url):
        return _store(url).exists(url)


def open_read(url: str) -> IO[bytes]:
    """A binary stream of the object. Raises FileNotFoundError."""
    with explained(url):
        return _store(url).open_read(url)


def read_bytes(url: str, *, small: bool = False) -> bytes:
    """The whole object. Raises FileNotFoundError.

    Args:
        small: whether it is known to be small: then an object store is not asked for its size before.
    """
    with explained(url):
        return _store(url).read(url, small=small)


def read_json(url: str) -> dict[str, Any]:
    """A file of one JSON object; `Damaged` when it holds anything else."""
    hint = "the file is damaged; make it again"
    try:
        values = json.loads(read_bytes(url, small=True))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON ({error})", where=url, hint=hint) from None
    if not isinstance(values, dict):
        raise Damaged("not a JSON object", where=url, hint=hint)
    return values


def write_bytes(url: str, data: bytes) -> None:
    with explained(url, writing=True):
        _store(url).write(url, data)


@contextmanager
def open_write(url: str) -> Iterator[IO[bytes]]:
    """A stream whose content takes its place when the block ends well."""
    with explained(url, writing=True), _store(url).open_write(url) as out:
        yield out


def write_json(url: str, value: Any) -> None:
    """Canonical JSON: sorted keys, two-space indent, so equal content has equal bytes."""
    write_bytes(url, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def put_file(path: Path, url: str) -> None:
    """Copy a local file to a URL."""
    with explained(url, writing=True):
        _store(url).put(path, url)


def move_file(path: Path, url: str) -> None:
    """Put a local file that is not needed any more in its place, whole or not at all."""
    with explained(url, writing=True):
        _store(url).move(path, url)


def copy(source: str, target: str) -> None:
    """Copy an immutable object without sending it through here where that can be: hard link or server-side copy."""
    with explained(target):
        if _store(source) is _store(target) and (is_local(source) or _protocol(source) == _protocol(target)):
            _store(source).copy(source, target)
        else:
            write_bytes(target, read_bytes(source))


def _protocol(url: str) -> str:
    return url.split("://")[0]


def create_exclusive(url: str, data: bytes) -> bool:
    """Write an object only if there is none: True if this call made it."""
    with explained(url, writing=True):
        return _store(url).create(url, data)


def list_files(url: str, passed_over: list[str] | None = None) -> list[Entry]:
    """All files below a folder URL, sorted by path; an empty list when there is no such folder.

    Args:
        passed_over: where it is given, links to local folders are followed too, each folder once; it takes a line for
            each one that is not, and for each file and folder that cannot be read.
    """
    with explained(url):
        return _store(url).files(url, passed_over)


def describe(url: str) -> Entry:
    """The listing entry of one file, by its own name. Raises FileNotFoundError."""
    name = url.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    with explained(url):
        return _store(url).describe(url, name)


def lacks_bucket(url: str) -> bool:
    """Whether an s3:// URL names a bucket that is not there."""
    if not url.startswith("s3://"):
        return False
    with explained(url):
        fs, path = filesystem(url)
        return not fs.exists(path.split("/", 1)[0])


def list_folders(url: str) -> list[str]:
    """Names of the folders directly below a URL, sorted."""
    return [name for name, is_folder in _children(url) if is_folder]


def list_names(url: str) -> list[str]:
    """Names of what lies directly below a URL, sorted; what is only being written is left out."""
    return [name for name, _ in _children(url) if not is_temporary(name)]


def _children(url: str) -> list[tuple[str, bool]]:
    """Names, and whether each is a folder; none where no folder is."""
    with explained(url):
        return sorted(_store(url).children(url))


def remove(url: str) -> None:
    """Remove one object; nothing happens when there is none."""
    with explained(url), suppress(FileNotFoundError):
        _store(url).remove(url)


def remove_tree(url: str) -> None:
    """Remove a folder and everything below it; nothing happens when there is none."""
    with explained(url), suppress(FileNotFoundError):
        _store(url).remove_tree(url)


def remove_if_empty(url: str) -> None:
    """Remove a local folder in which there is nothing; an object store has no such thing."""
    _store(url).remove_if_empty(url)


PROBE = ".gptpipe-probe-"  # how the name of the object begins by which it is tried whether a place can be written


def check_writable(url: str) -> None:
    """Write, read back and remove a small object; raises the UserError that a run would meet."""
    probe = join(normalize(url), f"{PROBE}{secrets.token_hex(4)}")
    try:
        _probe(url, probe)
    except UserError as error:  # of the place that was given, not of the probe in it
        raise UserError(error.message.replace(probe, url), where=url, hint=error.hint) from None


def _probe(url: str, probe: str) -> None:
    try:
        write_bytes(probe, b"probe")
        if read_bytes(probe) != b"probe":
            raise UserError("what was written is not what is read", where=url, hint="check the object store")
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=url, hint="choose another place"
        ) from None
    finally:
        with suppress(UserError, OSError):
            remove(probe)
