"""Qwen3's architecture against transformers' Qwen3: logits, gradients, parameters, operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM

from gptpipe import GPT, ModelConfig
from gptpipe.train.budget import MemoryBudget
from gptpipe.weights.huggingface import hf_tensors
from tests.fixtures.qwen3 import SHAPES, ours, write

SCORED = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape: dict[str, Any], tmp_path: Path) -> None:
    mine = ours(**shape)
    theirs, info = Qwen3ForCausalLM.from_pretrained(write(mine, tmp_path), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert (mine(SCORED) - theirs(SCORED).logits).abs().max() < 1e-5
    loss = mine.train()(SCORED, SCORED)
    expected = F.cross_entropy(theirs(SCORED).logits.flatten(0, 1), SCORED.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    gradients = GPT(mine.config)
    with torch.no_grad():
        for each, parameter in zip(gradients.parameters(), mine.parameters(), strict=True):
            assert parameter.grad is not None
            each.copy_(parameter.grad)
    known = dict(theirs.named_parameters())
    for name, gradient in hf_tensors(gradients).items():
        expected_gradient = known[name].grad
        assert expected_gradient is not None
        assert (gradient - expected_gradient).abs().max() < 1e-4 * expected_gradient.abs().max(), name


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_the_same_whether_it_is_compiled_checkpointed_or_neither(shape: dict[str, Any], half: bool) -> None:
    def gradients(how: str) -> list[torch.Tensor]:
        model = ours(**shape).train()
        model.recompute = how == "checkpointed"
        if how == "compiled":
            for block in model.h:
                block.compile(backend="aot_eager")  # the plain layers, whose backward pass is autograd's
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model(SCORED, SCORED).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients("neither")
    for mine, same in zip(plain, gradients("checkpointed"), strict=True):
        assert torch.equal(mine, same)
    for mine, like in zip(plain, gradients("compiled"), strict=True):
        assert (mine - like).norm() < (2e-2 if half else 1e-5) * like.norm()


@torch.no_grad()
def test_half_precision_stays_near_float32() -> None:
    model = ours()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(SCORED).float()
    assert (half.log_softmax(-1) - model(SCORED).log_softmax(-1)).abs().mean() < 2e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_operations_are_counted(shape: dict[str, Any]) -> None:
    model = ours(**shape)
    config = model.config
    heads = 4 * config.head_width
    block = 32 * (heads + 2 * config.kv_heads * config.head_width) + heads * 32 + 3 * 32 * config.inner
    vectors = 3 * (2 * 32 + 2 * config.head_width) + 32
    tables = 300 * 32 * (1 if config.tie_weights else 2)
    assert model.count_parameters() == 3 * block + vectors + tables
    assert model.flops_per_token() == 6 * (3 * block + vectors + 300 * 32) + 12 * 3 * heads * 48


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_keeps_what_is_predicted(shape: dict[str, Any], half: bool) -> None:
    model = ours(**shape).train()
    config = model.config
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []
    tokens = SCORED[:1].expand(4, -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        model.hidden(tokens)
    predicted = tokens.numel() * MemoryBudget.of_block(config, 2 if half else 4, "cpu") * 3
    # the last sum, roots of the norms of tokens and of heads, maxima of the attention; what all blocks share
    more = tokens.numel() * (2 * 32 + 3 * (2 + 2 * 4 + config.kv_heads)) * 4
    assert predicted <= sum(kept.values()) <= predicted + more + 20_000


def test_one_shape_is_said_in_one_way() -> None:
    usual = ModelConfig(architecture="qwen3", n_layer=2, n_head=4, n_embd=64, context_length=32)
    said = ModelConfig(
        architecture="qwen3",
        n_layer=2,
        n_head=4,
        n_kv_head=4,
        n_embd=64,
        head_size=16,
        n_inner=192,
        context_length=32,
        qkv_bias=False,
    )
    assert said == usual
    assert (usual.kv_heads, usual.head_width, usual.inner) == (4, 16, 192)
    assert ModelConfig(n_head=12, n_kv_head=12, n_inner=3072) == ModelConfig()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_kv_head": 3}, "n_kv_head 3 is for model.architecture=qwen3"),
        ({"n_inner": 100}, "n_inner 100 is for model.architecture=qwen3"),
        ({"head_size": 32}, "head_size 32 is for model.architecture=qwen3"),
        ({"rope_base": 5.0}, "rope_base is for model.architecture=qwen3"),
        ({"architecture": "qwen3", "dropout": 0.1}, "dropout is for model.architecture=gpt2"),
        ({"architecture": "qwen3", "n_kv_head": 5}, "n_head 12 is not a multiple of n_kv_head 5"),
        ({"architecture": "qwen3", "head_size": 33}, "head_size 33 is odd"),
        ({"architecture": "qwen3", "n_embd": 36}, "heads of n_embd / n_head = 3 features"),
        ({"architecture": "qwen3", "n_embd": 770}, "n_embd 770 is not a multiple of n_head 12"),
        ({"architecture": "llama"}, "Input should be 'gpt2' or 'qwen3'"),
    ],
)
def test_shapes_that_are_none(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelConfig(**values)
