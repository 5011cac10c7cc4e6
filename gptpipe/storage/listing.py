"""The files below a local folder, links followed where that is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gptpipe.storage.temporary import is_temporary


@dataclass(frozen=True)
class Entry:
    """One file below a URL. `version` changes whenever the content may have changed (mtime and inode, or ETag);
    `modified` is when it was written, in seconds since 1970, 0 where that is not known.
    """

    url: str
    path: str  # relative to the URL that was listed, with forward slashes
    size: int  # bytes
    version: str
    modified: float = 0.0


class Listing:
    """Walks a local folder.

    Args:
        passed_over: where it is given, links to folders are followed too, each folder once; it takes a line for each
            one that is not, and for each file and folder that cannot be read.
    """

    def __init__(self, passed_over: list[str] | None) -> None:
        self._passed_over, self._entries = passed_over, list[Entry]()
        self._links: list[tuple[str, str]] = []
        self._seen: set[tuple[int, int]] = set()

    def of(self, root: Path) -> list[Entry]:
        self._walk(str(root), "")
        while self._links:  # a folder that is there itself goes before a link to it
            self._links.sort(reverse=True)
            folder, path = self._links.pop()
            try:
                if self._is_new(folder):
                    self._walk(folder, f"{path}/")
                else:
                    self._pass_over(f"{path}: a link to a folder that is read already")
            except OSError as error:  # gone since it was listed
                self._pass_over(f"{path}: {error.strerror}")
        return sorted(self._entries, key=lambda entry: entry.path)

    def _walk(self, top: str, above: str) -> None:
        folders = [(top, above)]
        while folders:  # a path object a file would take longer than the listing
            folder, prefix = folders.pop()
            try:
                if self._passed_over is not None:
                    self._is_new(folder)
                with os.scandir(folder) as entries:
                    for each in entries:
                        if is_temporary(each.name):
                            continue
                        if each.is_dir(follow_symlinks=False):
                            folders.append((each.path, f"{prefix}{each.name}/"))
                        else:
                            self._take(each, prefix + each.name)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                is_root = folder == top and not above
                if is_root and isinstance(error, PermissionError):
                    raise
                if not is_root:
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
    return Entry(url, path, state.st_size, f"{state.st_mtime_ns}-{state.st_ino}", state.st_mtime)


def entry_of(file: Path, path: str) -> Entry:
    """The listing entry of one local file."""
    return _entry(str(file), path, file.stat())
