"""The fused loss against float64: on a GPU, or its kernels run by Python. `test_kernels.py` starts this."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptpipe.model import loss as loss_module
from gptpipe.model.fused import loss_kernels
from gptpipe.model.loss import IGNORED, linear_cross_entropy, token_scores

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
VOCABULARY, WIDTH = 4196, 24  # more columns than a program holds at once, and no multiple of anything


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(11, WIDTH, generator=draw).to(dtype)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=draw) / 2).to(dtype)
    targets = torch.randint(0, VOCABULARY, (11,), generator=draw)
    targets[::4] = IGNORED
    targets[1], targets[2] = 0, VOCABULARY - 1
    return hidden.to(DEVICE), weight.to(DEVICE), targets.to(DEVICE)


@pytest.fixture(autouse=True)
def _in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loss_kernels(torch.zeros(1, 1, device=DEVICE)) is not None
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", {"cpu": 6, "cuda": 6})


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_loss_and_gradients_are_those_of_float64(half: bool, shift: float) -> None:
    """Also where all logits are far from zero: those of the padding are zero."""
    hidden, weight, targets = problem()
    hidden[:, 0], weight[:, 0] = 1.0, shift
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=half):
        made = linear_cross_entropy(hidden, weight, targets)
    logits = hidden.double() @ weight.double().t()
    if half:  # what is compared is the loss, not the rounding of the product before it
        logits = logits + (hidden.bfloat16() @ weight.bfloat16().t() - logits).detach()
    expected = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    assert made.item() == pytest.approx(expected.item(), rel=2e-3 if half and DEVICE == "cuda" else 1e-5)
    reference = torch.autograd.grad(expected, (hidden, weight))
    for mine, right in zip(torch.autograd.grad(made, (hidden, weight)), reference, strict=True):
        mine, right = mine[:, 1:], right[:, 1:]  # by the first column, which is huge, rounding is multiplied
        assert (mine - right).norm() / right.norm() < (1e-2 if half else 1e-4)
    assert torch.equal(
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)[0][0], torch.zeros(WIDTH)
    )


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, targets = problem()
    with torch.no_grad():
        alone = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(alone, linear_cross_entropy(hidden.requires_grad_(), weight, targets).detach())


def test_nothing_is_scored_where_all_targets_are_ignored() -> None:
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(value: float) -> None:
    hidden, weight, targets = problem()
    hidden[1, 3] = value
    assert not linear_cross_entropy(hidden, weight, targets).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_torch(dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(dtype)
    targets = targets.clamp(min=0)
    weight[[20, 4100]] = weight[7].clone()  # as likely as each other, in two pieces of a row
    hidden[5:8] = 3 * weight[7]
    targets[5:8] = torch.tensor([7, 20, 4100], device=DEVICE)
    logits = hidden @ weight.t()
    nats, top, right = token_scores(hidden, weight, targets)
    wide = logits.double()
    torch.testing.assert_close(nats.double(), F.cross_entropy(wide, targets, reduction="none"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(top.double(), wide.softmax(1).amax(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(right, logits.argmax(dim=1) == targets)
    assert right[5:8].tolist() == [True, False, False]


def test_targets_that_do_not_lie_side_by_side() -> None:
    hidden, weight, targets = problem()
    apart = torch.stack([targets.flip(0), targets], dim=1)[:, 1]
    assert apart.stride() == (2,)
    assert torch.equal(linear_cross_entropy(hidden, weight, apart), linear_cross_entropy(hidden, weight, targets))
