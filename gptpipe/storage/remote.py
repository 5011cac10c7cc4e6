"""Object stores and web servers as a store, through fsspec. An object is put whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.storage.faults import explained
from gptpipe.storage.listing import Entry
from gptpipe.storage.urls import check_whole

_PART = 32 << 20  # of a multipart upload
_MOST_AT_ONCE = 1 << 28  # bytes of a web server's answer that is read whole


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a remote URL and the path in it."""
    check_whole(url)
    protocol = url.split("://", 1)[0]
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        # the client finds these in the environment too, but fsspec would not see that they have changed
        options = {
            "key": os.environ.get("AWS_ACCESS_KEY_ID") or None,
            "secret": os.environ.get("AWS_SECRET_ACCESS_KEY") or None,
            "token": os.environ.get("AWS_SESSION_TOKEN") or None,
            "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or None,
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


class Remote:
    """What lies behind `s3://`, `https://` and the other protocols of fsspec."""

    def exists(self, url: str) -> bool:
        fs, path = filesystem(url)
        return bool(fs.exists(path))

    def open_read(self, url: str) -> IO[bytes]:
        fs, path = filesystem(url)
        # a web server need not know ranges: without blocks the answer is read as it comes
        blocks = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
        return cast(IO[bytes], fs.open(path, "rb", **blocks))

    def read(self, url: str, *, small: bool) -> bytes:
        fs, path = filesystem(url)
        if url.startswith(("http://", "https://")):
            return self._read_answer(url)
        # s3fs asks for the size first, to read large objects in parts at once
        once = {"max_concurrency": 1} if small and url.startswith("s3") else {}
        return bytes(fs.cat_file(path, **once))

    def _read_answer(self, url: str) -> bytes:
        """The whole answer of a web server, which need not end."""
        with self.open_read(url) as stream:
            content = bytearray()
            while block := stream.read(_PART):
                content += block
                if len(content) > _MOST_AT_ONCE:
                    raise UserError(
                        f"more than {_MOST_AT_ONCE // 1_000_000} MB",
                        where=url,
                        hint="fetch it, and give the local file",
                    )
        return bytes(content)

    def write(self, url: str, data: bytes) -> None:
        fs, path = filesystem(url)
        fs.pipe_file(path, data)

    @contextmanager
    def open_write(self, url: str) -> Iterator[IO[bytes]]:
        """Large content goes up in parts while it is written."""
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

    def put(self, path: Path, url: str) -> None:
        fs, remote = filesystem(url)
        fs.put_file(str(path), remote)

    def move(self, path: Path, url: str) -> None:
        self.put(path, url)
        path.unlink()

    def copy(self, source: str, target: str) -> None:
        """On the server, without sending it through here."""
        fs, path = filesystem(source)
        fs.copy(path, filesystem(target)[1])

    def create(self, url: str, data: bytes) -> bool:
        """With a conditional put, on S3."""
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

    def files(self, url: str, passed_over: list[str] | None) -> list[Entry]:
        """No store has links, so nothing is passed over."""
        fs, root = filesystem(url)
        try:
            listed = fs.find(root, detail=True)
        except FileNotFoundError:
            return []
        base = root.rstrip("/") + "/"
        protocol = url.split("://", 1)[0]
        entries = [
            Entry(f"{protocol}://{path}", path.removeprefix(base), int(info["size"]), _version_of(info), _written(info))
            for path, info in listed.items()
            if path.startswith(base) and info["type"] == "file"
        ]
        return sorted(entries, key=lambda entry: entry.path)

    def children(self, url: str) -> list[tuple[str, bool]]:
        fs, root = filesystem(url)
        try:
            listed = fs.ls(root, detail=True)
        except FileNotFoundError:
            return []
        return [(info["name"].rstrip("/").rsplit("/", 1)[-1], info["type"] == "directory") for info in listed]

    def describe(self, url: str, name: str) -> Entry:
        fs, path = filesystem(url)
        info = fs.info(path)
        if info.get("type") == "directory":
            raise FileNotFoundError(url)
        if info.get("size") is None:
            raise UserError(
                "the server does not say how large it is", where=url, hint="fetch it and give the local file"
            )
        return Entry(url, name, int(info["size"]), _version_of(info))

    def remove(self, url: str) -> None:
        fs, path = filesystem(url)
        fs.rm_file(path)

    def remove_tree(self, url: str) -> None:
        fs, path = filesystem(url)
        fs.rm(path, recursive=True)

    def remove_if_empty(self, url: str) -> None:
        """An object store has no folders."""


@dataclass(frozen=True)
class Upload:
    """A large object whose upload was begun and never ended: its parts take room and no listing shows them.

    Attributes:
        url: where the object would be. identity: of the upload. begun: seconds since 1970.
    """

    url: str
    identity: str
    begun: float


def unfinished_uploads(url: str) -> list[Upload]:
    """Those below an `s3://` URL; a UserError where the store cannot tell."""
    fs, path = filesystem(url)
    bucket, _, prefix = path.rstrip("/").partition("/")
    with explained(url):
        answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
    return [
        Upload(f"s3://{bucket}/{each['Key']}", each["UploadId"], each["Initiated"].timestamp())
        for each in answer.get("Uploads", [])
    ]


def abort_upload(upload: Upload) -> None:
    """Give the room of its parts back."""
    fs, path = filesystem(upload.url)
    bucket, _, key = path.partition("/")
    with explained(upload.url, writing=True):
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.identity)


def _written(info: dict[str, Any]) -> float:
    when = info.get("LastModified")
    return when.timestamp() if isinstance(when, datetime) else 0.0


def _version_of(info: dict[str, Any]) -> str:
    """What an object store or web server says that changes with the content."""
    for key in ("ETag", "etag", "blob_id", "Content-MD5", "LastModified"):
        if info.get(key):
            return str(info[key])
    return ""
