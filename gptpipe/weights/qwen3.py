"""Hugging Face's dense Qwen3: its `config.json`, and the names and layout of its tensors, to ours and from ours.

There queries, keys and values are matrices of their own, and so are a gate and what it gates; here they lie one below
the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gptpipe.config import ModelConfig
from gptpipe.errors import UserError
from gptpipe.weights.tensors import Stored, stacked

CLASS = "Qwen3ForCausalLM"
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
}
"""Switches that change what is computed, and the values of them that are supported."""

_TOP = {"model.embed_tokens.weight": "wte.weight", "model.norm.weight": "ln_f.weight"}
_BLOCK = {
    "input_layernorm.weight": "ln_1.weight",
    "self_attn.o_proj.weight": "attn.c_proj.weight",
    "self_attn.q_norm.weight": "attn.q_norm.weight",
    "self_attn.k_norm.weight": "attn.k_norm.weight",
    "post_attention_layernorm.weight": "ln_2.weight",
    "mlp.down_proj.weight": "mlp.c_proj.weight",
}
_STACKED = {
    "attn.c_attn.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "mlp.c_fc.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
_LAYER = re.compile(r"^(?:model\.)?layers\.(\d+)\.(.+)$")
_OURS = re.compile(r"^h\.(\d+)\.(.+)$")


def fields(config: dict[str, Any]) -> dict[str, Any]:
    """Our fields of the shape. A KeyError where one is missing; what may be, is as `transformers` has it then."""
    rope = config.get("rope_parameters") or {}
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_embd": config["hidden_size"],
        "n_kv_head": config.get("num_key_value_heads", 32) or 0,
        "head_size": config.get("head_dim", 128) or 0,
        "n_inner": config["intermediate_size"],
        "rope_base": rope.get("rope_theta", config.get("rope_theta", 1e4)),
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
    }


def described(config: ModelConfig) -> dict[str, Any]:
    """What its `config.json` says of the shape."""
    return {
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_size": config.n_embd,
        "intermediate_size": config.inner,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": config.layer_norm_epsilon,
        "rope_theta": config.rope_base,  # as transformers had it before its version 5, and others still do
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rope_scaling": None,
        "use_sliding_window": False,
    }


def parts(config: ModelConfig, name: str) -> list[tuple[str, slice]]:
    """The tensors there that a tensor of ours is, each with its rows of it."""
    if (match := _OURS.match(name)) is None:
        return [(next((theirs for theirs, ours in _TOP.items() if ours == name), name), slice(None))]
    layer, rest = f"model.layers.{match[1]}.", match[2]
    if rest not in _STACKED:
        return [(layer + next(theirs for theirs, ours in _BLOCK.items() if ours == rest), slice(None))]
    each, keys = config.n_head * config.head_width, config.kv_heads * config.head_width
    sizes = [each, keys, keys] if rest.startswith("attn") else [config.inner] * 2
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    rows = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return [(layer + theirs, some) for theirs, some in zip(_STACKED[rest], rows, strict=True)]


def is_turned(_name: str) -> bool:
    """Whether a tensor of ours lies the other way round there: none does."""
    return False


def absent(_config: ModelConfig) -> dict[str, int]:
    """Vectors of zeros that are there and not in ours: none."""
    return {}


def is_one(names: Iterable[str]) -> bool:
    """Whether these are names of a Qwen3's tensors: it norms queries and keys."""
    return any(name.endswith("self_attn.q_norm.weight") for name in names)


def standardized(tensors: dict[str, Stored], where: str) -> dict[str, Stored]:
    """Our names and layout. What is no part of a Qwen3 keeps its name, and is named later.

    Raises:
        UserError: of what belongs together, a part is missing, or is not like the others.
    """
    ours: dict[str, Stored] = {}
    apart: dict[str, dict[str, Stored]] = {}
    for name, each in tensors.items():
        if (match := _LAYER.match(name)) is None:
            full = name if name.startswith(("model.", "lm_head")) else f"model.{name}"
            ours[_TOP.get(full, name)] = each
            continue
        layer, rest = match.groups()
        if rest in _BLOCK:
            ours[f"h.{layer}.{_BLOCK[rest]}"] = each
        elif whole := next((whole for whole, those in _STACKED.items() if rest in those), ""):
            apart.setdefault(f"h.{layer}.{whole}", {})[rest] = each
        else:
            ours[name] = each
    for name, have in apart.items():
        _, layer, rest = name.split(".", 2)
        if missing := [each for each in _STACKED[rest] if each not in have]:
            raise UserError(
                f"no {missing[0]} beside the others of layer {layer}", where=where, hint="save the whole model"
            )
        ours[name] = stacked({f"layers.{layer}.{each}": have[each] for each in _STACKED[rest]}, where)
    return ours


def other_positions(config: dict[str, Any]) -> str:
    """What of the positions is not supported, as `key is value`; empty where all is."""
    for key in ("rope_parameters", "rope_scaling"):  # what transformers calls it from version 5 on, and before
        rope = config.get(key) or {}
        if not isinstance(rope, dict):
            return f"{key} is {rope!r}"
        for name in ("rope_type", "type"):  # so it was called once
            if (kind := rope.get(name, "default")) != "default":
                return f"{key}.{name} is {kind!r}"
        if apart := [name for name, value in rope.items() if isinstance(value, dict)]:
            return f"{key} has {apart[0]!r}"
    layers = config.get("layer_types") or []
    if not isinstance(layers, list):
        return f"layer_types is {layers!r}"
    other = [each for each in layers if each != "full_attention"]
    return f"layer_types has {other[0]!r}" if other else ""
