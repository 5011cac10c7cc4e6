"""Linear layers that keep less for the backward pass: the bits of the plain ones, and correct gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.model.lean import linear, norm_linear

Layers = tuple[nn.LayerNorm, nn.Linear]
WIDTH, OUT = 48, 80


def layers(bias: bool = True, dtype: torch.dtype = torch.float32) -> Layers:
    torch.manual_seed(0)
    norm = nn.LayerNorm(WIDTH, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, nn.Linear(WIDTH, OUT, bias=bias, dtype=dtype)


PAIRS: dict[str, tuple[Callable[[Tensor, Layers], Tensor], Callable[[Tensor, Layers], Tensor]]] = {
    "norm": (lambda x, made: norm_linear(x, *made), lambda x, made: made[1](made[0](x))),
    "gelu": (lambda x, made: linear(x, made[1], "gelu"), lambda x, made: made[1](F.gelu(x, approximate="tanh"))),
    "plain": (lambda x, made: linear(x, made[1]), lambda x, made: made[1](x)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_bits_of_the_plain_layers(pair: str, half: bool, bias: bool) -> None:
    found = []
    for function in PAIRS[pair]:
        made = layers(bias)
        x = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        inside = x.bfloat16() if half and pair == "gelu" else x  # what stands before GELU comes out of a product
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = function(inside, made)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype))
        found.append([out, x.grad, *(p.grad for part in made for p in part.parameters() if p.grad is not None)])
    ours, plain = found
    assert len(ours) == len(plain)
    assert ours[0].dtype == (torch.bfloat16 if half else torch.float32)
    for mine, expected in zip(ours, plain, strict=True):
        assert mine is not None
        assert expected is not None
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients(pair: str) -> None:
    made = layers(dtype=torch.float64)
    parameters = [p for part in made for p in part.parameters()] if pair == "norm" else list(made[1].parameters())

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return PAIRS[pair][0](x, made)

    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("frozen", ["input", "layer"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    norm, layer = layers()
    x = torch.randn(4, WIDTH, requires_grad=frozen != "input")
    for parameter in (*norm.parameters(), *layer.parameters()):
        parameter.requires_grad_(frozen != "layer")
    (norm_linear(x, norm, layer).sum() + linear(x, layer, "gelu").sum()).backward()
    assert (x.grad is None) == (frozen == "input")
    assert all((p.grad is None) == (frozen == "layer") for p in (*norm.parameters(), *layer.parameters()))
