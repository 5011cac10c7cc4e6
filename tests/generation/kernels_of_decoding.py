"""The fused decoding step: on a GPU, or its kernels run by Python. `test_kernels.py` starts this."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptpipe import GPT, ModelConfig
from gptpipe.config import SampleConfig
from gptpipe.generation import kernels
from gptpipe.generation.cpu import PackedDecoder
from gptpipe.generation.fused import decoding_kernels
from gptpipe.generation.generate import generate_ids
from gptpipe.generation.gpu import GraphedDecoder

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Python's runner multiplies bfloat16 numbers by their bits, so that several rows of them are not tried
KINDS = [(torch.float32, 1), (torch.float32, 3), (torch.bfloat16, 1), (torch.float16, 18)]
if DEVICE == "cuda":
    KINDS += [(torch.bfloat16, 3), (torch.bfloat16, 18)]
CLOSE = {torch.float32: 2e-6 if DEVICE == "cpu" else 2e-5, torch.bfloat16: 0.04, torch.float16: 0.004}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize(("dtype", "rows"), KINDS)
@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_behind_its_norm(dtype: torch.dtype, rows: int, gelu: bool) -> None:
    x, weight, bias = 3 * drawn(rows, 1100), drawn(20, 1100, dtype=dtype, seed=1) / 33, drawn(20, dtype=dtype, seed=2)
    scale, shift = drawn(1100, seed=3), drawn(1100, seed=4)
    made = kernels.linear(x, weight, bias, norm=(scale, shift, 1e-5), gelu=gelu)
    wide = F.layer_norm(x.double(), (1100,), scale.double(), shift.double(), 1e-5).to(dtype).double()
    right = F.linear(wide, weight.double(), bias.double())
    right = F.gelu(right, approximate="tanh") if gelu else right
    assert made.dtype == dtype
    assert (made - right).abs().max() < CLOSE[dtype]


@pytest.mark.parametrize(("dtype", "rows"), KINDS)
def test_a_layer_that_is_added(dtype: torch.dtype, rows: int) -> None:
    x, weight, total = drawn(rows, 70, dtype=dtype), drawn(30, 70, dtype=dtype, seed=1), drawn(rows, 30, seed=2)
    right = total + F.linear(x.double(), weight.double())
    kernels.add_linear_(total, x, weight, None)
    assert (total - right).abs().max() < 1e-4  # as exact as float32, whatever was multiplied


@pytest.mark.parametrize(("dtype", "rows"), KINDS)
def test_each_row_attends_to_what_it_has(dtype: torch.dtype, rows: int) -> None:
    heads, size, capacity = 2, 20, 150
    qkv = drawn(rows, 3, heads, size, dtype=dtype)
    keys, values = (drawn(rows + 1, heads, capacity, size, dtype=dtype, seed=seed) for seed in (1, 2))
    positions = torch.arange(rows, device=DEVICE) * 8 % capacity
    positions[-1] = capacity - 1
    expected_keys, expected_values = keys.clone(), values.clone()
    made = kernels.attended(qkv, keys, values, positions)
    for row, position in enumerate(positions.tolist()):
        query, key, value = qkv[row]
        expected_keys[row, :, position], expected_values[row, :, position] = key, value
        k, v = (held[row, :, : position + 1].double() for held in (expected_keys, expected_values))
        right = F.scaled_dot_product_attention(query[:, None].double(), k, v).flatten()
        assert (made[row] - right).abs().max() < CLOSE[dtype]
    assert torch.equal(keys, expected_keys)  # and nothing else is written
    assert torch.equal(values, expected_values)


def test_whole_texts_are_those_of_the_cpu() -> None:
    torch.manual_seed(4)
    shape = ModelConfig(vocab_size=40, n_layer=1, n_head=2, n_embd=16, context_length=24)
    model = GPT(shape).eval()
    assert decoding_kernels(torch.device(DEVICE), torch.float32) is kernels
    there = copy.deepcopy(model).to(DEVICE)
    for given in ({"temperature": 0}, {"temperature": 1, "top_p": 0.9, "repetition_penalty": 1.2}):
        config = SampleConfig.model_validate({"max_new_tokens": 5, **given})
        prompts = [[5], list(range(8)), list(range(21))]
        for some in (prompts[1:2], prompts[:2]):
            right = generate_ids(model, some, config, decoder=PackedDecoder(model, 6, consume=False))
            assert generate_ids(there, some, config, decoder=GraphedDecoder(there, 6)) == right
