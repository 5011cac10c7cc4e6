"""Qwen3's weights in and out, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3ForCausalLM

from gptpipe import GPT, ModelConfig, UserError, load
from gptpipe.config import PipelineConfig
from gptpipe.weights.adapt import adapted, import_weights, starting_from
from gptpipe.weights.find import read_weights
from gptpipe.weights.tensors import Stored
from gptpipe.weights.weights import from_tensors
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
    assert [message.removeprefix(f"{tmp_path}/") for message in caplog.messages] == [
        "qwen3/step-00000003 is a Qwen3: so is the model that is trained, not the GPT-2 that was configured",
        "gpt2/step-00000003 is a GPT-2: so is the model that is trained, not the Qwen3 that was configured",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen3_moe"}, "a qwen3_moe model, not a GPT-2 or Qwen3"),
        ({"model_type": "llama"}, "a llama model, not a GPT-2 or Qwen3"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type is 'yarn'"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_parameters": {"type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "rope_parameters.type is 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters has 'full_attention'"),
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


def as_version_4_wrote_it(config: dict[str, Any]) -> None:
    del config["rope_parameters"]
    config.update(rope_theta=5e5, rope_scaling={"type": "default"})


def without_what_is_usual(config: dict[str, Any]) -> None:
    for name in ("head_dim", "tie_word_embeddings", "rms_norm_eps"):
        config.pop(name, None)


@torch.no_grad()
@pytest.mark.parametrize("change", [as_version_4_wrote_it, without_what_is_usual])
def test_configurations_that_say_it_otherwise(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    theirs(tied=False, head_dim=128).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    reference = Qwen3ForCausalLM.from_pretrained(tmp_path).eval()
    assert (load(str(tmp_path))(TOKENS) - reference(TOKENS).logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_in_shards_and_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs(tied=False).to(dtype).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    reference = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (load(str(tmp_path))(TOKENS) - reference(TOKENS).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("self_attn.k_proj", lambda each: each[:, :5], "k_proj.weight is (32, 5) of torch.float32"),
        ("self_attn.q_proj", lambda each: each[0, 0], "q_proj.weight is () of torch.float32"),
        ("self_attn.v_proj", lambda each: each.long(), "v_proj.weight is (32, 32) of torch.int64"),
        (
            "mlp.gate_proj",
            lambda each: each[:30],
            "c_fc.weight is put together of [30, 50] rows instead of [40, 40]",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_named(
    name: str, change: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    theirs().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    full = f"model.layers.1.{name}.weight"
    tensors[full] = change(tensors[full]).contiguous()
    if name == "mlp.gate_proj":
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(50, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        load(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_each_tensor_of_a_folder_is_read_once() -> None:
    model, reads = theirs(), Counter[str]()

    def counting(name: str, tensor: Tensor) -> Stored:
        def read() -> Tensor:
            reads[name] += 1
            return tensor

        return Stored(tuple(tensor.shape), tensor.dtype, read)

    stored = {name: counting(name, each.detach()) for name, each in model.state_dict().items() if "lm_head" not in name}
    assert from_tensors("here", model.config.to_dict(), dict(stored)).identity
    assert reads == Counter(stored.keys())


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
