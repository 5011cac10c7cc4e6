"""Tensors out of their file: whether their numbers are finite, in every type that weights come in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gptpipe import UserError
from gptpipe.weights.find import read_weights
from gptpipe.weights.tensors import is_finite

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_finite_is_what_torch_says(dtype: torch.dtype, turned: bool) -> None:
    edge = torch.finfo(dtype)
    for value in (0.0, -0.0, edge.max, edge.min, edge.tiny, -edge.tiny, math.inf, -math.inf, math.nan, -math.nan):
        tensor = torch.randn(3, 4).to(dtype)
        tensor[2, 1] = torch.tensor(value, dtype=dtype)
        tensor = tensor.t() if turned else tensor
        assert is_finite(tensor) == bool(tensor.isfinite().all()), value


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    """A few bytes that are copied out to terabytes."""
    torch.save({"wte.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="not a state dict of tensors"):
        read_weights(str(tmp_path / "bomb.pth"))
