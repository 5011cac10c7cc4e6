"""The spelling of URLs: local paths and `s3://` the same."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from gptpipe.errors import UserError

_BROKEN_URL = re.compile(r"(s3a?|https?|gs|az)(?:://?|:///.*|:[^/].*|:/[^/].*|:)$")


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
    """`url` with its scheme, as MLflow and browsers need it."""
    return local_path(url).as_uri() if is_local(url) else url


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
