"""Tensors where they lie: known by shape and type, read one at a time out of their file."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptpipe.errors import UserError

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Stored:
    """A tensor that is read when it is needed; what `read` gives may be a view of it.

    Attributes:
        pieces: tensors that lie below one another in it, where it was put together from some.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    pieces: tuple[Stored, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def turned(self) -> Stored:
        """Of two dimensions, the other way round."""
        return Stored(self.shape[::-1], self.dtype, lambda: self.read().t())

    def without_first(self) -> Stored:
        """Of a first dimension of one, without it."""
        return Stored(self.shape[1:], self.dtype, lambda: self.read()[0])

    def rows(self, some: slice) -> Stored:
        """Some rows of it."""
        if some == slice(None):
            return self
        begin = 0
        for piece in self.pieces:  # one of them is read without the others
            end = begin + piece.shape[0]
            if some == slice(begin, end):
                return piece
            begin = end
        count = len(range(*some.indices(self.shape[0])))
        return Stored((count, *self.shape[1:]), self.dtype, lambda: self.read()[some])

    def as_type(self, dtype: torch.dtype) -> Stored:
        pieces = tuple(piece.as_type(dtype) for piece in self.pieces)
        return Stored(self.shape, dtype, lambda: self.read().to(dtype), pieces)

    def checked(self, check: Callable[[Tensor], None]) -> Stored:
        """The same, with something that sees what is read first."""

        def read() -> Tensor:
            tensor = self.read()
            check(tensor)
            return tensor

        return Stored(self.shape, self.dtype, read, tuple(piece.checked(check) for piece in self.pieces))


def check_float16(name: str, tensor: Tensor, where: str) -> None:
    """A UserError when a finite tensor would not be finite in float16."""
    if tensor.abs().max() > torch.finfo(torch.float16).max:
        raise UserError(f"{name} holds numbers too large for float16", where=where, hint="take bfloat16 or float32")


def zeros(*shape: int) -> Stored:
    return Stored(shape, torch.float32, lambda: torch.zeros(shape))


def stacked(parts: Mapping[str, Stored], where: str) -> Stored:
    """Tensors, by their names, one below the other, along the first dimension.

    Raises:
        UserError: they have other widths or types.
    """
    pieces = tuple(parts.values())
    first = pieces[0]
    for name, each in parts.items():
        if not each.shape or (each.shape[1:], each.dtype) != (first.shape[1:], first.dtype):
            raise UserError(
                f"{name} is {each.shape} of {each.dtype}, {next(iter(parts))} is {first.shape} of {first.dtype}",
                where=where,
                hint="save the whole model again, in one type",
            )
    shape = (sum(piece.shape[0] for piece in pieces), *first.shape[1:])
    return Stored(shape, first.dtype, lambda: torch.cat([piece.read() for piece in pieces]), pieces)


def is_finite(tensor: Tensor) -> bool:
    """Whether none of its numbers is infinite or NaN.

    Their bits, read as integers, are at least those of infinity, of either sign. One thread and no memory: torch's own
    reductions wait for all threads at every tensor, which takes longer than reading it.
    """
    if not tensor.is_contiguous():  # mostly a view of what lies the other way round
        tensor = (tensor.mT if tensor.ndim > 1 else tensor).contiguous()
    size, infinity = tensor.itemsize, torch.tensor(torch.inf, dtype=tensor.dtype)
    bits, positive, negative = (each.view(_INTEGERS[size]).numpy() for each in (tensor, infinity, -infinity))
    unsigned = f"u{size}"
    return bool(bits.max() < positive and bits.view(unsigned).max() < negative.view(unsigned))


def open_safetensors(path: Path, where: str) -> dict[str, Stored]:
    """The tensors of a safetensors file, in the order in which they lie there.

    They are read into memory of their own, not mapped: a mapped file counts as memory until the last tensor is dropped.

    Args:
        path: of a local file, which may be removed once this has returned.
        where: what a person calls the file.

    Raises:
        UserError: it is not one, or cut off.
    """
    hint = "fetch or write it again"
    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file
            file = path.open("rb")
    except FileNotFoundError:
        raise UserError("no such file", where=where, hint="give the path of one that is there") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"not a whole safetensors file ({error})", where=where, hint=hint) from None
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])):
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise UserError(f"{name} is of type {entry['dtype']}", where=where, hint="save it in float32 or bfloat16")
        shape, dtype = tuple(entry["shape"]), _TYPES[entry["dtype"]]
        begin = 8 + length + entry["data_offsets"][0]
        tensors[name] = Stored(shape, dtype, partial(read_at, file, begin, shape, dtype, where))
    return tensors


def read_at(file: BinaryIO, begin: int, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> Tensor:
    """A tensor that lies in a file as it is.

    Raises:
        UserError: the file ends before it does.
    """
    tensor = torch.empty(shape, dtype=dtype)
    view = tensor.reshape(-1).view(torch.uint8).numpy().data
    done = 0
    while done < len(view):  # a call reads 2 GB at most
        count = os.preadv(file.fileno(), [view[done:]], begin + done)
        if count == 0:
            raise UserError("was cut off while it was read", where=where, hint="fetch or write it again")
        done += count
    return tensor


def open_torch(path: Path, where: str) -> dict[str, Any]:
    """What torch.save has written, by the restricted loader that runs no code; tensors are mapped where that can be.

    Raises:
        UserError: it would run code, is cut off, or holds no dictionary.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused in the next moment
            loaded = _loaded(path)
    except FileNotFoundError:
        raise UserError("no such file", where=where, hint="give the path of one that is there") from None
    except pickle.UnpicklingError as error:
        said = re.search(r"GLOBAL (\S+)", str(error))
        imported = said[1].rstrip(".") if said else _import_of(path)
        detail = f"it would import {imported}" if imported else "it is not a plain state dict"
        raise UserError(
            f"refused: {detail}", where=where, hint="save only model.state_dict(), or use safetensors"
        ) from None
    except Exception as error:  # of a damaged file torch's reader raises whatever its bytes make it do
        raise UserError(
            f"not a torch file, or cut off ({str(error) or type(error).__name__})", where=where, hint="save it again"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError("not a state dict of tensors", where=where, hint="save model.state_dict()")
    return loaded


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):  # the format of before torch 1.6 cannot be mapped
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _import_of(path: Path) -> str:
    """The first that a bare pickle would import; empty for what is none. Nothing in it is run."""
    texts: list[str] = []
    with suppress(Exception), path.open("rb") as file:  # the bytes of a damaged one say anything
        for code, argument, _ in pickletools.genops(file):
            if code.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    return ""
