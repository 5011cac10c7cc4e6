"""Tensors out of their file: whether their numbers are finite, in every type that weights come in."""

from __future__ import annotations

import math

import pytest
import torch

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
