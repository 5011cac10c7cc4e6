"""A checkpoint committed: its files first, its manifest last, so that it is whole or not there; old ones removed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gptpipe import storage
from gptpipe.weights.checkpoint import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    STEP,
    Checkpoint,
    list_checkpoints,
    step_name,
)
from gptpipe.weights.tensors import Stored

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}
_BLOCK = 8 << 20


def write_checkpoint(
    training: str,
    step: int,
    *,
    model: Mapping[str, Tensor | Stored],
    config: dict[str, Any],
    optimizer: dict[str, Tensor] | None = None,
    state: dict[str, Any] | None = None,
    others: Mapping[str, bytes] | None = None,
) -> Checkpoint:
    """Write `<training>/step-<step>/`, the manifest last. What is there already is replaced file by file.

    Args:
        others: further files by name: those of a tokenizer that came in files.
    """
    url = storage.join(training, step_name(step))
    contents: dict[str, Iterable[bytes | memoryview]] = {
        MODEL: model_file(model),  # the first: tensors that cannot be read leave nothing behind
        CONFIG: [_json_bytes(config)],
        **{name: [content] for name, content in (others or {}).items()},
    }
    if optimizer is not None:
        contents[OPTIMIZER] = _safetensors(optimizer)
    if state is not None:
        contents[STATE] = [_json_bytes(state)]
    storage.remove(storage.join(url, MANIFEST))
    files = {name: _write(storage.join(url, name), blocks) for name, blocks in contents.items()}
    manifest = storage.with_digest({"format": FORMAT_VERSION, "step": step, "files": files})
    storage.write_json(storage.join(url, MANIFEST), manifest)
    return Checkpoint(step, url, manifest)


def _write(url: str, blocks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file block by block; its entry in the manifest."""
    state, size = hashlib.sha256(), 0
    with storage.open_write(url) as out:
        for block in blocks:
            out.write(block)
            state.update(block)
            size += len(block)
    return {"size": size, "sha256": state.hexdigest()}


def model_file(tensors: Mapping[str, Tensor | Stored]) -> Iterator[bytes | memoryview]:
    """The bytes of model.safetensors; the same tensors have the same."""
    return _safetensors(tensors, {"format": "pt"})  # transformers asks for the format entry


def _safetensors(
    tensors: Mapping[str, Tensor | Stored], metadata: dict[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, without a copy of what it holds: its header, then blocks of each tensor.

    The format: the header's length in eight bytes, JSON of every tensor's type, shape and place, then the tensors
    (https://github.com/huggingface/safetensors). The library can only build it whole in memory, or in a local file.
    Tensors that have not been read are read one at a time.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    # the library's own order: wide types first, so that all are aligned, then by name, so that equal content has
    # equal bytes
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    for name, tensor in ordered.items():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    yield len(content).to_bytes(8, "little") + content
    for tensor in ordered.values():
        content_of = tensor.read() if isinstance(tensor, Stored) else tensor
        data = content_of.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _BLOCK):
            yield data[start : start + _BLOCK]


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def prune(training: str, keep: int, best_step: int | None) -> list[int]:
    """Remove all but the last `keep` checkpoints and the best. Returns the steps removed."""
    checkpoints = list_checkpoints(training)
    removed = []
    for checkpoint in checkpoints[:-keep]:
        if checkpoint.step != best_step:
            remove_checkpoint(checkpoint.url)
            removed.append(checkpoint.step)
    return removed


def remove_checkpoint(url: str) -> None:
    """Remove a checkpoint, its manifest first, so that a folder half removed is not taken for one."""
    storage.remove(storage.join(url, MANIFEST))
    storage.remove_tree(url)


def finish_removals(newest: Checkpoint) -> list[int]:
    """Remove what a kill left of checkpoints that were going: older folders without a manifest. Returns their steps.

    Only for who may write there. One whose manifest is damaged stays.
    """
    training, removed = storage.parent(newest.url), []
    for name in storage.list_folders(training):
        url = storage.join(training, name)
        step = int(name.removeprefix("step-")) if STEP.match(name) else newest.step
        if step < newest.step and not storage.exists(storage.join(url, MANIFEST)):
            storage.remove_tree(url)
            removed.append(step)
    return removed
