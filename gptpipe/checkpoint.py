"""The checkpoint folder: write, verify, find, prune. A folder without its manifest does not exist.

`step-00000500/` holds `config.json` and `model.safetensors` as Hugging Face's GPT-2 has them, and beside them
`optimizer.safetensors`, `state.json` and, written last, `manifest.json` with every file's size and SHA-256.
No pickle anywhere: what is loaded can run nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from gptpipe import storage
from gptpipe.errors import UserError

FORMAT_VERSION = 1
MODEL, CONFIG, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "config.json",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
_STEP = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its step, its folder, and its manifest."""

    step: int
    url: str
    manifest: dict[str, Any]

    @property
    def model_sha256(self) -> str:
        """Digest of the weights: the identity of what was loaded."""
        return str(self.manifest["files"][MODEL]["sha256"])

    def read(self, name: str) -> bytes:
        """A file of the checkpoint, held against the manifest.

        Raises:
            UserError: it is missing, or a byte of it is not what was written.
        """
        url = storage.join(self.url, name)
        promised = self.manifest["files"].get(name)
        hint = "remove this folder to use the checkpoint before it, or give another"
        if promised is None:
            raise UserError(f"the checkpoint has no {name}", where=self.url, hint=hint)
        try:
            content = storage.read_bytes(url)
        except FileNotFoundError:
            raise UserError("missing from the checkpoint", where=url, hint=hint) from None
        if len(content) != promised["size"] or hashlib.sha256(content).hexdigest() != promised["sha256"]:
            raise UserError("damaged: its size or SHA-256 is not the one in the manifest", where=url, hint=hint)
        return content

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_tensors(self.read(name), storage.join(self.url, name))

    def json(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.read(name))
        return values


def load_tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content; a UserError when it is not one."""
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise UserError(
            f"not a whole safetensors file ({error})", where=where, hint="fetch or write it again"
        ) from None


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def write_checkpoint(
    training: str,
    step: int,
    *,
    model: dict[str, Tensor],
    config: dict[str, Any],
    optimizer: dict[str, Tensor] | None = None,
    state: dict[str, Any] | None = None,
) -> Checkpoint:
    """Write `<training>/step-<step>/`, the manifest last. What is there already is replaced file by file."""
    url = storage.join(training, step_name(step))
    contents = {
        CONFIG: _json_bytes(config),
        # transformers asks for the format entry
        MODEL: safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.items()}, {"format": "pt"}),
    }
    if optimizer is not None:
        contents[OPTIMIZER] = safetensors.torch.save(optimizer)
    if state is not None:
        contents[STATE] = _json_bytes(state)
    storage.remove(storage.join(url, MANIFEST))
    for name, content in contents.items():
        storage.write_bytes(storage.join(url, name), content)
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    manifest = {"format": FORMAT_VERSION, "step": step, "files": files}
    storage.write_json(storage.join(url, MANIFEST), manifest)
    return Checkpoint(step, url, manifest)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def open_checkpoint(url: str) -> Checkpoint | None:
    """The checkpoint in a folder, or None when there is no complete one."""
    url = storage.normalize(url)
    try:
        manifest = storage.read_json(storage.join(url, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(manifest, dict) or MODEL not in manifest.get("files", {}):
        return None
    if manifest.get("format") != FORMAT_VERSION:
        raise UserError(
            f"checkpoint format {manifest.get('format')}, this gptpipe reads {FORMAT_VERSION}",
            where=url,
            hint="use the gptpipe that wrote it",
        )
    return Checkpoint(int(manifest["step"]), url, manifest)


def list_checkpoints(training: str) -> list[Checkpoint]:
    """The complete checkpoints of a training folder, oldest first."""
    names = [name for name in storage.list_folders(training) if _STEP.match(name)]
    found = (open_checkpoint(storage.join(training, name)) for name in names)
    return sorted((checkpoint for checkpoint in found if checkpoint), key=lambda checkpoint: checkpoint.step)


def newest_checkpoint(training: str) -> Checkpoint | None:
    """The newest complete checkpoint of a training folder, or None. Reads one manifest, not all."""
    names = [name for name in storage.list_folders(training) if _STEP.match(name)]
    for name in sorted(names, key=lambda name: int(name.removeprefix("step-")), reverse=True):
        if checkpoint := open_checkpoint(storage.join(training, name)):
            return checkpoint
    return None


def prune(training: str, keep: int, best_step: int | None) -> list[int]:
    """Remove all but the last `keep` checkpoints and the best. Returns the steps removed.

    The manifest goes first, so that a folder half removed is not taken for a checkpoint.
    """
    checkpoints = list_checkpoints(training)
    removed = []
    for checkpoint in checkpoints[:-keep]:
        if checkpoint.step != best_step:
            storage.remove(storage.join(checkpoint.url, MANIFEST))
            storage.remove_tree(checkpoint.url)
            removed.append(checkpoint.step)
    return removed
