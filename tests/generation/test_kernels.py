"""The kernels of a decoding step without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fixtures.triton import CAPABILITIES, compiled, needs_triton, run_by_python, run_on_a_gpu

LINEAR = {"x": "*fp32", "scale": "*fp32", "shift": "*fp32", "weight": "*bf16", "bias": "*bf16", "out": "*bf16"}
LINEAR |= {"rows": "i32", "inputs": "i32", "outputs": "i32", "epsilon": "fp32"}
ATTENDED = {"qkv": "*bf16", "keys": "*bf16", "values": "*bf16", "positions": "*i64", "out": "*bf16"}
ATTENDED |= {"heads": "i32", "size": "i32", "capacity": "i32", "share": "fp32"}


@needs_triton
@pytest.mark.parametrize("run", [pytest.param(run_by_python, marks=pytest.mark.slow), run_on_a_gpu])
def test_a_decoding_step(run: Callable[[str], None]) -> None:
    run("tests/generation/kernels_of_decoding.py")


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("alone", [True, False])
def test_a_layer_is_compiled_and_reads_its_matrix_in_pieces_of_16_bytes(alone: bool, capability: int) -> None:
    from gptpipe.generation import kernels

    size = {"OUT": 8, "DEPTH": 1024} if alone else {"OUT": 16, "DEPTH": 128}
    constants = {"NORM": True, "BIAS": True, "GELU": True, "ADD": False, "ALONE": alone, **size}
    text = compiled(kernels._linear, capability, LINEAR, constants, 4)
    assert "ld.global.v4" in text or "cp.async" in text
    assert ("mma" in text) is not alone  # several rows go through the matrix units


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention_is_compiled(capability: int) -> None:
    from gptpipe.generation import kernels

    text = compiled(kernels._attended, capability, ATTENDED, {"SIZE": 64, "TOKENS": 64}, 4)
    assert "ld.global.v4" in text
