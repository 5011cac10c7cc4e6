"""llm.c's `.bin`: a header of 256 integers, then GPT-2's tensors, each of all blocks together.

Layout, order and versions are those that llm.c's own converter to Hugging Face reads (`dev/eval/export_hf.py`): linear
layers (out, in), an output layer that is the embedding, a vocabulary padded to a multiple of 128.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptpipe.errors import UserError
from gptpipe.weights.tensors import Stored, read_at

_MAGIC = struct.pack("<i", 20240326)
_HEADER = 256 * 4  # bytes
_HINT = "copy it again"
_TYPES = {3: torch.float32, 5: torch.bfloat16}  # by version


def is_llmc(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_llmc(path: Path, where: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The shape as Hugging Face's configuration, and the tensors, which are read when they are needed.

    Args:
        path: of a local file, which may be removed once this has returned.
        where: what a person calls the file.

    Raises:
        UserError: it is of another version, or its size is not what its header says.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER:
        raise UserError(f"cut off: its header has {len(header):,} of {_HEADER:,} bytes", where=where, hint=_HINT)
    _, version, context, vocabulary, layers, heads, width, padded = struct.unpack_from("<8i", header)
    if version not in _TYPES:
        raise UserError(f"version {version} of llm.c's files", where=where, hint="write it as version 3 or 5")
    if min(context, vocabulary, layers, heads, width, padded - vocabulary + 1) < 1:
        raise UserError("its header holds no shape of a GPT-2", where=where, hint=_HINT)
    dtype = _TYPES[version]
    numbers = width * (padded + context + layers * (12 * width + 13) + 2)
    expected = _HEADER + numbers * dtype.itemsize
    if (size := path.stat().st_size) != expected:
        raise UserError(f"its header asks for {expected:,} bytes, it has {size:,}", where=where, hint=_HINT)
    place, file, tensors = _HEADER, path.open("rb"), {}
    for name, shape in _order(context, padded, layers, width):
        tensors[name] = Stored(shape, dtype, partial(read_at, file, place, shape, dtype, where))
        place += math.prod(shape) * dtype.itemsize
    tensors["wte.weight"] = tensors["wte.weight"].rows(slice(vocabulary))
    config = {
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": context,
        "n_embd": width,
        "n_head": heads,
        "n_layer": layers,
        "tie_word_embeddings": True,
    }
    return config, tensors


def _order(context: int, padded: int, layers: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as they lie in the file."""
    yield "wte.weight", (padded, width)
    yield "wpe.weight", (context, width)
    for name, out, given in (
        ("ln_1", width, 0),
        ("attn.c_attn", 3 * width, width),
        ("attn.c_proj", width, width),
        ("ln_2", width, 0),
        ("mlp.c_fc", 4 * width, width),
        ("mlp.c_proj", width, 4 * width),
    ):
        for layer in range(layers):
            yield f"h.{layer}.{name}.weight", (out, given) if given else (out,)
        for layer in range(layers):
            yield f"h.{layer}.{name}.bias", (out,)
    yield "ln_f.weight", (width,)
    yield "ln_f.bias", (width,)
