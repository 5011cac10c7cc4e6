"""Hugging Face's GPT-2: its `config.json`, and the names and layout of its tensors."""

from __future__ import annotations

from typing import Any

from gptpipe.config import ModelConfig
from gptpipe.weights.layouts import LINEAR

CLASS = "GPT2LMHeadModel"
ONLY: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""Switches that change what is computed, and the values of them that are supported, the last one best known."""


def fields(config: dict[str, Any]) -> dict[str, Any]:
    """Our fields of the shape. A KeyError where one is missing."""
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config.get("n_positions", config.get("n_ctx", 1024)),
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "n_embd": config["n_embd"],
        "dropout": config.get("resid_pdrop", 0.1),
        "layer_norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    }


def described(config: ModelConfig) -> dict[str, Any]:
    """What its `config.json` says of the shape."""
    return {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.layer_norm_epsilon,
    }


def parts(_config: ModelConfig, name: str) -> list[tuple[str, slice]]:
    """The tensors there that a tensor of ours is, each with its rows of it."""
    return [(name if name == "lm_head.weight" else f"transformer.{name}", slice(None))]


def is_turned(name: str) -> bool:
    """Whether a tensor of ours lies the other way round there, (in, out)."""
    return bool(LINEAR.match(name))


def absent(config: ModelConfig) -> dict[str, int]:
    """Vectors of zeros that are there and not in ours, with their sizes: biases of query, key and value."""
    if config.qkv_bias:
        return {}
    return {f"transformer.h.{layer}.attn.c_attn.bias": 3 * config.n_embd for layer in range(config.n_layer)}
