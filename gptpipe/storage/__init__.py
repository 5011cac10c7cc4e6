"""URLs to bytes: local paths and `s3://` the same, through fsspec. Every write is all-or-nothing.

A local file is written under a temporary name beside its place, flushed to the disk and renamed; an object is
put whole. So a reader sees the old content, the new content or nothing, whatever is killed and whenever.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import psutil

from gptpipe.config.settings import settings
from gptpipe.errors import UserError
from gptpipe.extras import install_hint

_TEMPORARY = re.compile(r"^\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}-")
_BROKEN_URL = re.compile(r"(s3a?|https?|gs|az)(?:://?|:///.*|:[^/].*|:/[^/].*|:)$")
_COPY_BLOCK = 8 << 20
_PART = 32 << 20  # of a multipart upload
# packages whose exceptions mean that a server is away or refuses
_CLIENTS = frozenset(
    [
        "botocore",
        "aiobotocore",
        "aiohttp",
        "huggingface_hub",
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "requests",
        "urllib3",
    ]
)


@dataclass(frozen=True)
class Entry:
    """One file below a URL. `version` changes whenever the content may have changed (mtime and inode, or ETag)."""

    url: str
    path: str  # relative to the URL that was listed, with forward slashes
    size: int  # bytes
    version: str


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def check_whole(url: str) -> None:
    """Refuse a URL that lacks its slashes or what comes after them: it would be taken for a local folder.

    Raises:
        UserError: for example `s3://` or `s3:/bucket`.
    """
    if broken := _BROKEN_URL.match(url):
        kind = broken[1]
        what = "bucket" if kind.startswith("s3") else "host" if kind.startswith("http") else "path"
        raise UserError(f"not a whole URL: no {what} after {kind}://", where=url, hint=f"write {kind}://{what}/…")


def local_path(url: str) -> Path:
    check_whole(url)
    return Path(url.removeprefix("file://")).expanduser().absolute()


def normalize(url: str) -> str:
    """The one spelling of a URL: absolute local paths, no trailing slash."""
    check_whole(url)
    return str(local_path(url)) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def parent(url: str) -> str:
    """The folder that a file or folder lies in."""
    return url.rsplit("/", 1)[0]


def as_uri(url: str) -> str:
    """`url` with its scheme, as MLflow and browsers want it."""
    return local_path(url).as_uri() if is_local(url) else url


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a remote URL and the path in it."""
    check_whole(url)
    protocol = url.split("://", 1)[0]
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        here = settings()
        options = {
            "key": here.s3_access_key or None,
            "secret": here.s3_secret_key.get_secret_value() if here.s3_secret_key else None,
            "endpoint_url": here.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or None,
            "client_kwargs": {"region_name": here.s3_region} if here.s3_region else {},
            "config_kwargs": {
                "connect_timeout": 10,
                "read_timeout": 60,
                "retries": {"max_attempts": 4, "mode": "standard"},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            "use_listings_cache": False,
        }
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        hint = install_hint("hf") if protocol == "hf" else "use a local path or an s3:// URL"
        raise UserError(str(error), where=url, hint=hint) from None
    return fs, path


@contextmanager
def explained(url: str, *, writing: bool = False) -> Iterator[None]:
    """Turn what a storage layer raises into one line that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        if writing and not is_local(url):
            raise UserError(
                f"nothing can be written there ({error})", where=url, hint="create the bucket first"
            ) from None
        cause = error.__cause__
        if url.startswith("http") and cause is not None and getattr(cause, "status", None) != 404:
            raise _no_answer(url, cause) from error  # fsspec calls whatever went wrong a file that is not there
        raise
    except (UserError, FileExistsError):
        raise
    except PermissionError as error:
        hint = (
            "check the permissions of the path"
            if is_local(url)
            else "check GPTPIPE_S3_ACCESS_KEY and GPTPIPE_S3_SECRET_KEY, and that they may use this bucket"
        )
        raise UserError(f"access refused ({error})", where=url, hint=hint) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "no space left on the device",
                where=url,
                hint="free some space or choose another folder; what was complete is kept, run again to go on",
            ) from error
        if error.errno in (errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG):
            raise UserError(error.strerror or str(error), where=url, hint="choose another folder") from error
        if not is_local(url):
            raise _no_answer(url, error) from error
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind in ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"):
            raise UserError(
                "no S3 credentials",
                where=url,
                hint="set GPTPIPE_S3_ACCESS_KEY and GPTPIPE_S3_SECRET_KEY (or the usual AWS variables)",
            ) from error
        if type(error).__module__.split(".")[0] in _CLIENTS and not is_local(url):
            raise _no_answer(url, error) from error
        raise


def _no_answer(url: str, error: BaseException) -> UserError:
    if not url.startswith("s3"):
        return UserError(f"the server did not answer ({error})", where=url, hint="check the URL and the network")
    return UserError(
        f"the object store did not answer as expected ({error})",
        where=url,
        hint="check GPTPIPE_S3_ENDPOINT and the bucket; `gptpipe doctor` tries both",
    )


def is_local_file(url: str) -> bool:
    """False for what lies elsewhere, and for a name that is none."""
    with suppress(OSError):
        return is_local(url) and local_path(url).is_file()
    return False


def is_local_folder(url: str) -> bool:
    """False for what lies elsewhere, and for a name that is none."""
    with suppress(OSError):
        return is_local(url) and local_path(url).is_dir()
    return False


def exists(url: str) -> bool:
    with explained(url):
        if is_local(url):
            return local_path(url).exists()
        fs, path = filesystem(url)
        return bool(fs.exists(path))


def open_read(url: str) -> IO[bytes]:
    """A binary stream of the object. Raises FileNotFoundError."""
    with explained(url):
        if is_local(url):
            return local_path(url).open("rb")
        fs, path = filesystem(url)
        # a web server need not know ranges: without blocks the answer is read as it comes
        blocks = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
        return cast(IO[bytes], fs.open(path, "rb", **blocks))


def read_bytes(url: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    with explained(url):
        if is_local(url):
            return local_path(url).read_bytes()
        fs, path = filesystem(url)
        return bytes(fs.cat_file(path))


def read_json(url: str) -> dict[str, Any]:
    """A file of one JSON object; a UserError when it holds anything else."""
    hint = "the file is damaged; make it again"
    try:
        found = json.loads(read_bytes(url))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=url, hint=hint) from None
    if not isinstance(found, dict):
        raise UserError("not a JSON object", where=url, hint=hint)
    return found


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
            _take_place(temporary, path)
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


def _take_place(temporary: Path, path: Path) -> None:
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


def scratch_home() -> Path:
    """Where files wait that are on their way to an object store."""
    return settings().home_path / "scratch"


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(url: str, data: bytes) -> None:
    with explained(url, writing=True):
        if is_local(url):
            with atomic_file(local_path(url)) as temporary:
                temporary.write_bytes(data)
        else:
            fs, path = filesystem(url)
            fs.pipe_file(path, data)


@contextmanager
def open_write(url: str) -> Iterator[IO[bytes]]:
    """A stream whose content takes its place when the block ends well.

    In an object store large content goes up in parts while it is written.
    """
    with explained(url, writing=True):
        if is_local(url):
            with atomic_file(local_path(url)) as temporary, temporary.open("wb") as out:
                yield out
        else:
            fs, path = filesystem(url)
            out = fs.open(path, "wb", block_size=_PART)
            try:
                yield out
                out.close()
            except BaseException:
                out.closed = True  # or what there is of it would be sent when it is collected
                with suppress(Exception):  # the store may be what failed; what is raised says how
                    out.discard()
                raise


def write_json(url: str, value: Any) -> None:
    """Canonical JSON: sorted keys, two-space indent, so equal content has equal bytes."""
    write_bytes(url, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def put_file(path: Path, url: str) -> None:
    """Copy a local file to a URL."""
    with explained(url, writing=True):
        if is_local(url):
            with atomic_file(local_path(url)) as temporary:
                shutil.copyfile(path, temporary)
        else:
            fs, remote = filesystem(url)
            fs.put_file(str(path), remote)


def move_file(path: Path, url: str) -> None:
    """Put a local file that is not needed any more in its place, whole or not at all."""
    with explained(url, writing=True):
        if is_local(url):
            target = local_path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            _take_place(path, target)
        else:
            fs, remote = filesystem(url)
            fs.put_file(str(path), remote)
            path.unlink()


def get_file(url: str, path: Path) -> None:
    """Copy an object to a local file, which appears whole or not at all. Raises FileNotFoundError."""
    with (
        explained(url),
        open_read(url) as source,
        atomic_file(path) as temporary,
        temporary.open("wb") as out,
    ):
        shutil.copyfileobj(source, out, _COPY_BLOCK)


def copy(source: str, target: str) -> None:
    """Copy an immutable object without sending it through here where that can be: hard link or server-side copy."""
    with explained(target):
        if is_local(source) and is_local(target):
            with atomic_file(local_path(target)) as temporary:
                try:
                    os.link(local_path(source), temporary)
                except OSError:  # another device, or a file system without hard links
                    shutil.copyfile(local_path(source), temporary)
        elif not is_local(source) and not is_local(target) and source.split("://")[0] == target.split("://")[0]:
            fs, path = filesystem(source)
            fs.copy(path, filesystem(target)[1])
        else:
            write_bytes(target, read_bytes(source))


def create_exclusive(url: str, data: bytes) -> bool:
    """Write an object only if there is none: True if this call made it (conditional put on S3)."""
    with explained(url, writing=True):
        if is_local(url):
            path = local_path(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_link(path) as temporary:
                temporary.write_bytes(data)
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
            return True
        fs, remote = filesystem(url)
        try:
            fs.pipe_file(remote, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # what s3fs makes of "412 Precondition Failed"
            if "PreconditionFailed" in repr(error.__cause__):
                return False
            raise
        return True


@contextmanager
def atomic_link(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, removed at the end."""
    temporary = _temporary(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def list_files(url: str, passed_over: list[str] | None = None) -> list[Entry]:
    """All files below a folder URL, sorted by path; an empty list when there is no such folder.

    Args:
        passed_over: where it is given, links to local folders are followed too, each folder once; it takes a line for
            each one that is not, and for each file and folder that cannot be read.
    """
    with explained(url):
        if is_local(url):
            return _Listing(passed_over).of(local_path(url))
        fs, root = filesystem(url)
        try:
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            return []
        base = root.rstrip("/") + "/"
        protocol = url.split("://", 1)[0]
        entries = [
            Entry(f"{protocol}://{path}", path.removeprefix(base), int(info["size"]), _version_of(info))
            for path, info in found.items()
            if path.startswith(base) and info["type"] == "file"
        ]
        return sorted(entries, key=lambda entry: entry.path)


class _Listing:
    """The files below a local folder."""

    def __init__(self, passed_over: list[str] | None) -> None:
        self._passed_over, self._entries = passed_over, list[Entry]()
        self._links: list[tuple[str, str]] = []
        self._seen: set[tuple[int, int]] = set()

    def of(self, root: Path) -> list[Entry]:
        self._walk(str(root), "")
        while self._links:  # a folder that is there itself goes before a link to it
            self._links.sort(reverse=True)
            folder, path = self._links.pop()
            if self._is_new(folder):
                self._walk(folder, f"{path}/")
            else:
                self._pass_over(f"{path}: a link to a folder that is read already")
        return sorted(self._entries, key=lambda entry: entry.path)

    def _walk(self, top: str, above: str) -> None:
        folders = [(top, above)]
        while folders:  # a path object a file would take longer than the listing
            folder, prefix = folders.pop()
            try:
                if self._passed_over is not None:
                    self._is_new(folder)
                with os.scandir(folder) as found:
                    for each in found:
                        if _TEMPORARY.match(each.name):
                            continue
                        if each.is_dir(follow_symlinks=False):
                            folders.append((each.path, f"{prefix}{each.name}/"))
                        else:
                            self._take(each, prefix + each.name)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                if folder != top or above:
                    self._pass_over(f"{prefix.rstrip('/')}: {error.strerror}")

    def _take(self, each: os.DirEntry[str], path: str) -> None:
        try:
            if each.is_file():
                self._entries.append(_entry(each.path, path, each.stat()))
            elif each.is_symlink() and self._passed_over is not None:
                if each.is_dir():
                    self._links.append((each.path, path))
                else:
                    self._pass_over(f"{path}: a link to nothing")
        except OSError as error:  # a link to itself
            self._pass_over(f"{path}: {error.strerror}")

    def _is_new(self, folder: str) -> bool:
        state = Path(folder).stat()
        known = (state.st_dev, state.st_ino) in self._seen
        self._seen.add((state.st_dev, state.st_ino))
        return not known

    def _pass_over(self, line: str) -> None:
        if self._passed_over is not None:
            self._passed_over.append(line)


def _entry(url: str, path: str, state: os.stat_result) -> Entry:
    return Entry(url, path, state.st_size, f"{state.st_mtime_ns}-{state.st_ino}")


def entry_of(file: Path, path: str) -> Entry:
    """The listing entry of one local file."""
    return _entry(str(file), path, file.stat())


def describe(url: str) -> Entry:
    """The listing entry of one file, by its own name. Raises FileNotFoundError."""
    name = url.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    with explained(url):
        if is_local(url):
            return entry_of(local_path(url), name)
        fs, path = filesystem(url)
        info = fs.info(path)
    if info.get("type") == "directory":
        raise FileNotFoundError(url)
    if info.get("size") is None:
        raise UserError("the server does not say how large it is", where=url, hint="fetch it and give the local file")
    return Entry(url, name, int(info["size"]), _version_of(info))


def lacks_bucket(url: str) -> bool:
    """Whether an s3:// URL names a bucket that is not there."""
    if not url.startswith("s3://"):
        return False
    with explained(url):
        fs, path = filesystem(url)
        return not fs.exists(path.split("/", 1)[0])


def _version_of(info: dict[str, Any]) -> str:
    """What an object store or web server says that changes with the content."""
    for key in ("ETag", "etag", "blob_id", "Content-MD5", "LastModified"):
        if info.get(key):
            return str(info[key])
    return ""


def list_folders(url: str) -> list[str]:
    """Names of the folders directly below a URL, sorted."""
    return [name for name, is_folder in _children(url) if is_folder]


def list_names(url: str) -> list[str]:
    """Names of what lies directly below a URL, sorted; what is only being written is left out."""
    return [name for name, _ in _children(url) if not _TEMPORARY.match(name)]


def _children(url: str) -> list[tuple[str, bool]]:
    """Names, and whether each is a folder; none where no folder is."""
    with explained(url):
        if is_local(url):
            path = local_path(url)
            return sorted((child.name, child.is_dir()) for child in path.iterdir()) if path.is_dir() else []
        fs, root = filesystem(url)
        try:
            found = fs.ls(root, detail=True)
        except FileNotFoundError:
            return []
        return sorted((info["name"].rstrip("/").rsplit("/", 1)[-1], info["type"] == "directory") for info in found)


def remove(url: str) -> None:
    """Remove one object; nothing happens when there is none."""
    with explained(url), suppress(FileNotFoundError):
        if is_local(url):
            local_path(url).unlink()
        else:
            fs, path = filesystem(url)
            fs.rm_file(path)


def remove_tree(url: str) -> None:
    """Remove a folder and everything below it; nothing happens when there is none."""
    with explained(url), suppress(FileNotFoundError):
        if is_local(url):
            shutil.rmtree(local_path(url))
        else:
            fs, path = filesystem(url)
            fs.rm(path, recursive=True)


def remove_if_empty(url: str) -> None:
    """Remove a local folder in which there is nothing; an object store has no such thing."""
    if is_local(url):
        with suppress(OSError):
            local_path(url).rmdir()


def sweep_temporaries(url: str, *, below: bool = True) -> None:
    """Remove what processes of this machine that no longer live left half-written in a local folder."""
    if not is_local(url):
        return
    for folder, folders, names in os.walk(local_path(url)):
        for name in folders + names:
            match = _TEMPORARY.match(name)
            if match and match["host"] == socket.gethostname() and not psutil.pid_exists(int(match["pid"])):
                left = Path(folder) / name
                if name in folders:
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
        folders[:] = [name for name in folders if below and not _TEMPORARY.match(name)]


def check_writable(url: str) -> None:
    """Write, read back and remove a small object; raises the UserError that a run would meet."""
    probe = join(normalize(url), f".gptpipe-probe-{secrets.token_hex(4)}")
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
