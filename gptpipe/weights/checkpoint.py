"""The checkpoint folder, read: verified, found, listed. One without its manifest does not exist.

`step-00000500/` holds `config.json` and `model.safetensors` as Hugging Face's GPT-2 or Qwen3 has them, and beside them
`optimizer.safetensors`, `state.json` and, written last, `manifest.json` with every file's size and SHA-256.
No pickle anywhere: what is loaded can run nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gptpipe import storage
from gptpipe.errors import Damaged, UserError
from gptpipe.storage.fetch import local_copy
from gptpipe.weights.tensors import Stored, open_safetensors

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
_KEYS = {"format", "step", "files"}
MODEL, CONFIG, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "config.json",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
_HINT = "remove this folder to use the checkpoint before it, or give another"
STEP = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its step, its folder, and its manifest. Small files are read once."""

    step: int
    url: str
    manifest: dict[str, Any]
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def model_sha256(self) -> str:
        """Digest of the weights: the identity of what was loaded."""
        return str(self.manifest["files"][MODEL]["sha256"])

    def check(self) -> None:
        """Raise `Damaged` where a file is missing, or is not what was written.

        On a disk all of it is read. Of an object store, which has checksums of its own, sizes are compared.
        """
        sizes = {entry.path: entry.size for entry in storage.list_files(self.url)}
        for name, promised in self.manifest["files"].items():
            url = storage.join(self.url, name)
            if name not in sizes:
                raise Damaged("missing from the checkpoint", where=url, hint=_HINT)
            if sizes[name] != promised.get("size"):
                raise Damaged("damaged: its size is not what it should be", where=url, hint=_HINT)
            if storage.is_local(url):
                with self._verified(name):
                    pass

    def read(self, name: str) -> bytes:
        """A small file of the checkpoint, checked against the manifest.

        Raises:
            Damaged: it is missing, or a byte of it is not what was written.
        """
        if name not in self._contents:
            self._contents[name] = self._read(name)
        return self._contents[name]

    def _read(self, name: str) -> bytes:
        promised, url = self._promised(name), storage.join(self.url, name)
        try:
            content = storage.read_bytes(url, small=True)
        except FileNotFoundError:
            raise Damaged("missing from the checkpoint", where=url, hint=_HINT) from None
        if hashlib.sha256(content).hexdigest() != promised["sha256"]:
            raise Damaged("damaged: its size or SHA-256 is not what it should be", where=url, hint=_HINT)
        return content

    def _promised(self, name: str) -> dict[str, Any]:
        promised = self.manifest["files"].get(name)
        if promised is None:
            raise UserError(f"the checkpoint has no {name}", where=self.url, hint=_HINT)
        return dict(promised)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of a file, in memory."""
        return {key: each.read() for key, each in self.stored(name).items()}

    def stored(self, name: str) -> dict[str, Stored]:
        """The tensors of a file, checked against the manifest, to be read one by one. Raises as `read` does."""
        with self._verified(name) as path:
            return open_safetensors(path, storage.join(self.url, name))

    @contextmanager
    def _verified(self, name: str) -> Iterator[Path]:
        promised, url = self._promised(name), storage.join(self.url, name)
        try:
            with local_copy(url, promised["sha256"], _HINT) as path:
                yield path
        except FileNotFoundError:
            raise Damaged("missing from the checkpoint", where=url, hint=_HINT) from None

    def json(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.read(name))
        return values


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def open_checkpoint(url: str) -> Checkpoint | None:
    """The checkpoint in a folder, or None when there is no complete one."""
    url = storage.normalize(url)
    if storage.is_local_file(url):
        return None
    try:
        manifest = storage.read_json(storage.join(url, MANIFEST))
    except FileNotFoundError:
        return None
    files, step = manifest.get("files", {}), manifest.get("step", 0)
    if not _lists_files(files) or not isinstance(step, int) or not _is_as_written(manifest):
        raise Damaged(f"its {MANIFEST} is damaged", where=url, hint="take another checkpoint, or make it again")
    if MODEL not in files:
        return None
    if manifest.get("format") != FORMAT_VERSION:
        raise UserError(
            f"checkpoint format {manifest.get('format')}, this gptpipe reads {FORMAT_VERSION}",
            where=url,
            hint="use the gptpipe that wrote it",
        )
    return Checkpoint(step, url, manifest)


def _is_as_written(manifest: dict[str, Any]) -> bool:
    """Whether its digest says so. One of an earlier version has none, and no other key in its place."""
    if storage.DIGEST in manifest:
        return storage.is_as_written(manifest)
    return MODEL not in manifest.get("files", {}) or manifest.keys() <= _KEYS


def _lists_files(files: Any) -> bool:
    """Whether these are files by name with the SHA-256 of each."""
    return isinstance(files, dict) and all(
        isinstance(file, dict) and isinstance(file.get("sha256"), str) for file in files.values()
    )


def intact_checkpoint(url: str) -> Checkpoint | None:
    """As `open_checkpoint`; one whose manifest is damaged is named, and passed over: another one is as good."""
    try:
        return open_checkpoint(url)
    except Damaged as error:
        log.warning("%s: %s; the checkpoint is passed over", error.where, error.message)
        return None


def list_checkpoints(training: str) -> list[Checkpoint]:
    """The complete checkpoints of a training folder, oldest first."""
    names = [name for name in storage.list_folders(training) if STEP.match(name)]
    checkpoints = (intact_checkpoint(storage.join(training, name)) for name in names)
    return sorted((checkpoint for checkpoint in checkpoints if checkpoint), key=lambda checkpoint: checkpoint.step)


def newest_checkpoint(training: str, passed_over: Collection[str] = ()) -> Checkpoint | None:
    """The newest complete checkpoint of a training folder, or None. Reads one manifest, not all.

    Args:
        passed_over: URLs of those that are not asked for.
    """
    names = [name for name in storage.list_folders(training) if STEP.match(name)]
    for name in sorted(names, key=lambda name: int(name.removeprefix("step-")), reverse=True):
        url = storage.join(training, name)
        if url not in passed_over and (checkpoint := intact_checkpoint(url)):
            return checkpoint
    return None
