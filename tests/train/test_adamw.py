"""Our AdamW beside torch's class: the same bits, and no compiler loaded for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptpipe.train.adamw import AdamW


def parameters() -> nn.ParameterList:
    draw = torch.Generator().manual_seed(1)
    shapes: list[tuple[int, ...]] = [(17, 9), (300,), (5, 3, 2), (8,)]
    return nn.ParameterList([torch.randn(shape, generator=draw) for shape in shapes])


def grouped(given: nn.ParameterList) -> list[dict[str, object]]:
    every = list(given)
    return [{"params": every[:1], "weight_decay": 0.1}, {"params": every[1:], "weight_decay": 0.0}]


def set_gradients(given: nn.ParameterList, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for number, parameter in enumerate(given):
        value = torch.randn(parameter.shape, generator=draw)
        parameter.grad = None if number == 3 and seed < 4 else value  # one that begins later


@pytest.mark.parametrize("skipped", [(), (0, 5)])
def test_the_bits_are_those_of_torchs_class(skipped: tuple[int, ...]) -> None:
    mine, theirs = parameters(), parameters()
    ours = AdamW(grouped(mine), learning_rate=3e-3, betas=(0.9, 0.95), epsilon=1e-8)
    reference = torch.optim.AdamW(grouped(theirs), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)  # type: ignore[arg-type]
    for step in range(12):
        for group in [*ours.param_groups, *reference.param_groups]:
            group["lr"] = 3e-3 / (1 + step)
        set_gradients(mine, step)
        set_gradients(theirs, step)
        bad = torch.tensor(float(step in skipped))
        reference.grad_scale, reference.found_inf = None, bad  # type: ignore[attr-defined]
        before = [parameter.detach().clone() for parameter in mine]
        ours.step(bad if skipped else None)
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True)) == (step in skipped)
    for a, b in zip(mine, theirs, strict=True):
        one: dict[str, Tensor] = ours.state[a]
        other = reference.state[b]
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
            assert value.dtype == other[name].dtype
    ours.zero_grad()
    assert all(parameter.grad is None for parameter in mine)


def test_a_step_loads_no_compiler() -> None:
    words = """
import sys
from pathlib import Path
from tests.train.test_step import Rig, batch
assert "torch._dynamo" not in sys.modules, "before"
Rig().stepper.take(batch())
assert "torch._dynamo" not in sys.modules, "after"
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # prepare_environment closes the folder
    subprocess.run([sys.executable, "-c", words], check=True, timeout=120, env=environment)
