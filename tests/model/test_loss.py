"""The chunked output layer and loss against the plain computation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gptpipe.model import loss as loss_module
from gptpipe.model.loss import IGNORED, linear_cross_entropy, token_scores


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", {"cpu": 5})
    monkeypatch.setattr(loss_module, "SOFTMAX_ROWS", 2)


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets, reduction="sum", ignore_index=IGNORED)


def problem(dtype: torch.dtype, rows: int = 17) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(rows, 12, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(61, 12, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 61, (rows,), generator=generator)
    targets[::4] = IGNORED
    return hidden, weight, targets


def test_gradcheck_in_float64() -> None:
    hidden, weight, targets = problem(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rows", [1, 5, 17])
def test_loss_and_gradients_equal_the_plain_computation(dtype: torch.dtype, tolerance: float, rows: int) -> None:
    hidden, weight, targets = problem(dtype, rows)
    targets[0] = 7
    expected = plain(hidden, weight, targets)
    wanted = torch.autograd.grad(expected * 0.37, (hidden, weight))
    found = linear_cross_entropy(hidden, weight, targets)
    given = torch.autograd.grad(found * 0.37, (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for mine, reference in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=tolerance * 10, atol=tolerance * 10)


def test_bfloat16_autocast_stays_within_its_rounding() -> None:
    hidden, weight, targets = problem(torch.float32)
    expected = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, targets)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(plain(hidden, weight, targets).item(), rel=1e-2)
    for mine, reference in zip(torch.autograd.grad(found, (hidden, weight)), expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() / reference.norm() < 1e-2


def test_very_unlikely_targets_keep_a_finite_loss() -> None:
    hidden = torch.tensor([[300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(600.0)
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(2.0)


def test_nothing_is_scored_where_all_targets_are_ignored() -> None:
    hidden, weight, targets = problem(torch.float32)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0


def test_no_rows_cost_nothing_and_have_no_gradient() -> None:
    hidden, weight = torch.zeros((0, 8), requires_grad=True), torch.ones((70, 8), requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_tokens_that_are_as_likely_the_first_is_the_likeliest(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    weight = torch.randn(60, 8).to(dtype)
    weight[[20, 41]] = weight[7].clone()
    hidden = torch.cat([torch.randn(40, 8), 3 * weight[7].float().expand(6, 8)]).to(dtype)
    targets = torch.cat([torch.randint(0, 60, (40,)), torch.tensor([7, 20, 41, 7, 3, 41])])
    _, _, right = token_scores(hidden, weight, targets)
    assert torch.equal(right, (hidden @ weight.T).argmax(dim=1) == targets)
    assert right[-6:].tolist() == [True, False, False, True, False, False]
