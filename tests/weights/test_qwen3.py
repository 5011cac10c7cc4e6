"""Qwen3's weights in and out, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptpipe import GPT, ModelConfig, UserError, load
from gptpipe.config import PipelineConfig
from gptpipe.weights.adapt import adapted, import_weights, starting_from
from gptpipe.weights.find import read_weights
from tests.fixtures.qwen3 import SHAPES, ours, theirs, write
from tests.weights.test_weights import reference

TOKENS = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_logits_of_a_hugging_face_folder(tied: bool, heads: tuple[int, int], tmp_path: Path) -> None:
    model = theirs(tied=tied, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    model.save_pretrained(tmp_path)
    mine = load(str(tmp_path))
    assert mine.config.tie_weights is tied
    assert (mine(TOKENS) - model(TOKENS).logits).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_our_checkpoint_comes_back_bit_for_bit(shape: dict[str, Any], tmp_path: Path) -> None:
    model = ours(**shape)
    again = load(write(model, tmp_path))
    assert again.config == model.config
    for (name, mine), (other, same) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(mine, same)


@torch.no_grad()
def test_state_dicts_beside_their_config(tmp_path: Path) -> None:
    model = theirs()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    torch.save({f"_orig_mod.{name}": each for name, each in model.state_dict().items()}, tmp_path / "compiled.pth")
    mine = load(str(tmp_path / "theirs.pth"))
    torch.save(mine.state_dict(), tmp_path / "ours.pt")
    for name in ("compiled.pth", "ours.pt"):
        assert torch.equal(load(str(tmp_path / name))(TOKENS), mine(TOKENS))
    (tmp_path / "config.json").unlink()
    for name in ("theirs.pth", "ours.pt"):
        with pytest.raises(UserError, match="a Qwen3 without its shape"):
            load(str(tmp_path / name))


def test_an_import_is_what_was_imported(tmp_path: Path) -> None:
    theirs(vocabulary=50257).save_pretrained(tmp_path / "hf")
    written = import_weights(str(tmp_path / "hf"), str(tmp_path / "out"))
    before, after = load_file(tmp_path / "hf/model.safetensors"), load_file(Path(written.url) / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_weights(written.url).identity == read_weights(str(tmp_path / "hf")).identity


@torch.no_grad()
def test_a_longer_context_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ours(vocabulary=50257)
    weights = read_weights(write(model, tmp_path))
    with caplog.at_level(logging.WARNING):
        shorter = adapted(weights, context_length=40).build()
        assert not caplog.messages
        longer = adapted(weights, context_length=96).build()
    (said,) = caplog.messages
    assert "96 tokens of context, the weights were trained with 48" in said
    tokens = torch.randint(0, 50257, (1, 40))
    assert torch.equal(longer(tokens), model(tokens))
    assert torch.equal(shorter(tokens), model(tokens))


def test_a_training_that_starts_from_weights_has_their_architecture_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modern, usual = PipelineConfig(preset="nano-modern"), PipelineConfig(preset="nano", model=ModelConfig(dropout=0.1))
    checkpoint = write(ours(n_kv_head=2), tmp_path / "qwen3")
    started = starting_from(modern, checkpoint).model
    assert (started.architecture, started.kv_heads, caplog.messages) == ("qwen3", 2, [])
    started = starting_from(usual, checkpoint).model
    assert (started.architecture, started.dropout) == ("qwen3", 0.0)
    other = write(GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=300, context_length=8)), tmp_path / "gpt2")
    assert starting_from(usual, other).model.dropout == 0.1
    started = starting_from(modern, other).model
    assert (started.architecture, started.n_layer, started.dropout) == ("gpt2", 1, 0.0)
    with pytest.raises(UserError, match="the weights are a GPT-2's, and a Qwen3 is to be trained"):
        starting_from(PipelineConfig(preset="nano", model=ModelConfig(architecture="qwen3")), other)
    with pytest.raises(UserError, match="the weights are a GPT-2's, and a Qwen3 is to be trained"):
        starting_from(PipelineConfig(preset="modern-124m"), other)
    assert [message.removeprefix(f"{tmp_path}/") for message in caplog.messages] == [
        "qwen3/step-00000003 is a Qwen3: so is the model that is trained, not the GPT-2 that was configured",
        "gpt2/step-00000003 is a GPT-2: so is the model that is trained, not the Qwen3 that was configured",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen3_moe"}, "a qwen3_moe model, not a GPT-2 or Qwen3"),
        ({"model_type": "llama"}, "a llama model, not a GPT-2 or Qwen3"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type is 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"head_dim": 15}, "head_size 15 is odd"),
        ({"num_key_value_heads": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"intermediate_size": 41}, "mlp.c_fc.weight is"),
        ({"num_hidden_layers": 3}, "h.2.attn.c_attn.weight is missing"),
        ({"rope_parameters": 7}, "rope_parameters is 7"),
    ],
)
def test_what_is_computed_otherwise_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as refused:
        load(str(tmp_path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no self_attn\.k_proj\.weight beside the others of layer 1"):
        load(str(tmp_path))


def test_a_quantised_gpt2_is_refused_too(tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 300).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"bits": 4}}))
    with pytest.raises(UserError, match="the weights are quantised"):
        load(str(tmp_path))
