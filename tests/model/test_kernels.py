"""The kernels of the loss without a GPU, and what is done where they do not run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from gptpipe.model.fused import loss_kernels, might_run, tried
from tests.fixtures.triton import CAPABILITIES, compiled, needs_triton, run_by_python, run_on_a_gpu


@needs_triton
@pytest.mark.parametrize("run", [run_by_python, run_on_a_gpu])
def test_the_loss(run: Callable[[str], None]) -> None:
    run("tests/model/kernels_of_the_loss.py")


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_loss_is_compiled_and_goes_through_memory_in_pieces_of_16_bytes(capability: int) -> None:
    from gptpipe.model import kernels

    types = {"logits": "*bf16", "targets": "*i64", "nats": "*fp32", "top": "*fp32", "right": "*i8", "stride": "i32"}
    types |= {"vocabulary": "i32", "width": "i32", "ignored": "i32"}
    constants = {"GRADIENT": True, "SCORES": True, "BLOCK": kernels.COLUMNS}
    text = compiled(kernels._softmax_cross_entropy, capability, types, constants, kernels.WARPS)
    assert text.count("ld.global.v4") == 4  # 16 numbers of a thread, two bytes each, twice over
    assert text.count("ld.global") == 4 + 2  # target and its logit
    assert text.count("st.global.v4") == 2


def test_on_a_cpu_nothing_is_tried() -> None:
    assert not might_run(torch.device("cpu"))
    assert loss_kernels(torch.zeros(1, 1)) is None


@pytest.mark.parametrize("fault", ["no compiler", "wrong"])
def test_kernels_that_do_not_run_or_are_wrong_are_left_out_with_one_line(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    def attempt() -> tuple[ModuleType, bool]:
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")
        return torch, False

    with caplog.at_level(logging.WARNING):
        assert tried("loss", attempt) is None
    [said] = [record.message for record in caplog.records]
    why = {"no compiler": "RuntimeError: Failed to find C compiler.", "wrong": "they do not come to the right numbers"}
    assert said == f"fused kernels for the loss do not run here, going on with torch's own: {why[fault]}"
