"""The local file system as a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gptpipe.storage.listing import Entry, Listing, entry_of
from gptpipe.storage.temporary import atomic_file, atomic_link, take_place
from gptpipe.storage.urls import local_path


class Local:
    """Files and folders of this machine. A file is written beside its place, flushed to the disk and renamed."""

    def exists(self, url: str) -> bool:
        return local_path(url).exists()

    def open_read(self, url: str) -> IO[bytes]:
        return local_path(url).open("rb")

    def read(self, url: str, *, small: bool) -> bytes:
        return local_path(url).read_bytes()

    def write(self, url: str, data: bytes) -> None:
        with atomic_file(local_path(url)) as temporary:
            temporary.write_bytes(data)

    @contextmanager
    def open_write(self, url: str) -> Iterator[IO[bytes]]:
        with atomic_file(local_path(url)) as temporary, temporary.open("wb") as out:
            yield out

    def put(self, path: Path, url: str) -> None:
        with atomic_file(local_path(url)) as temporary:
            shutil.copyfile(path, temporary)

    def move(self, path: Path, url: str) -> None:
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        take_place(path, target)

    def copy(self, source: str, target: str) -> None:
        with atomic_file(local_path(target)) as temporary:
            try:
                os.link(local_path(source), temporary)
            except OSError:  # another device, or a file system without hard links
                shutil.copyfile(local_path(source), temporary)

    def create(self, url: str, data: bytes) -> bool:
        path = local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_link(path) as temporary:
            temporary.write_bytes(data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    def files(self, url: str, passed_over: list[str] | None) -> list[Entry]:
        return Listing(passed_over).of(local_path(url))

    def children(self, url: str) -> list[tuple[str, bool]]:
        path = local_path(url)
        return [(child.name, child.is_dir()) for child in path.iterdir()] if path.is_dir() else []

    def describe(self, url: str, name: str) -> Entry:
        return entry_of(local_path(url), name)

    def remove(self, url: str) -> None:
        local_path(url).unlink()

    def remove_tree(self, url: str) -> None:
        shutil.rmtree(local_path(url))

    def remove_if_empty(self, url: str) -> None:
        with suppress(OSError):
            local_path(url).rmdir()
