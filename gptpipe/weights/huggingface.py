"""Hugging Face's GPT-2: its `config.json` and the names and layout of its tensors, from ours and to ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gptpipe.config import ModelConfig, complaint
from gptpipe.errors import UserError
from gptpipe.model.gpt import GPT
from gptpipe.weights.layouts import LINEAR, SUPPORTED
from gptpipe.weights.tensors import Stored, zeros


def model_config_from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """Our configuration of a Hugging Face GPT-2 config.

    Raises:
        UserError: it is another architecture, or uses a switch of GPT-2's that changes the computation.
    """
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UserError(f"a {kind or 'nameless'} model, not a GPT-2", where=where, hint=f"give {SUPPORTED}")
    width = config.get("n_embd")
    unsupported = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "n_inner": (None, 4 * (width or 0)),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, allowed in unsupported.items():
        if key in config and config[key] not in allowed:
            raise UserError(
                f"{key} is {config[key]!r}, only {allowed[-1]!r} is supported",
                where=where,
                hint="give a GPT-2 without it",
            )
    ours = ours_in(config, where)
    try:
        return ModelConfig(
            vocab_size=config["vocab_size"],
            context_length=config.get("n_positions", config.get("n_ctx", 1024)),
            n_layer=config["n_layer"],
            n_head=config["n_head"],
            n_embd=config["n_embd"],
            dropout=config.get("resid_pdrop", 0.1),
            qkv_bias=ours.get("qkv_bias", True),
            tie_weights=config.get("tie_word_embeddings", True),
            init=ours.get("init", "gpt2"),
            layer_norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        )
    except KeyError as error:
        raise UserError(f"the config has no {error}", where=where, hint="give the model's own config.json") from None
    except ValidationError as error:
        field = "".join(f"{part}: " for part in error.errors()[0]["loc"])
        raise UserError(
            f"the config cannot be used: {field}{complaint(error)}",
            where=where,
            hint="give the model's own config.json",
        ) from None


def ours_in(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What Hugging Face's `config.json` cannot say, which stands under `gptpipe`; empty in one of another's."""
    ours = config.get("gptpipe") or {}
    if not isinstance(ours, dict):
        raise UserError("`gptpipe` in the config is no object", where=where, hint="take it out of config.json")
    return ours


def hf_config(config: ModelConfig, tokenizer: str, end_of_text: int) -> dict[str, Any]:
    """`config.json` as Hugging Face's GPT-2 has it, with what it cannot say under `gptpipe`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
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
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "use_cache": True,
        "dtype": "float32",
        "gptpipe": {"tokenizer": tokenizer, "qkv_bias": config.qkv_bias, "init": config.init},
    }


def hf_tensors(model: GPT) -> dict[str, Tensor]:
    """The weights under GPT-2's names and in its layout, float32: views of the model's own tensors where possible."""
    config = model.config
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            if not config.tie_weights:
                tensors[name] = value.detach().float()
            continue
        value = value.detach().float()
        tensors[f"transformer.{name}"] = value.t() if LINEAR.match(name) else value
    if not config.qkv_bias:  # transformers' GPT-2 always has them
        for layer in range(config.n_layer):
            tensors[f"transformer.h.{layer}.attn.c_attn.bias"] = torch.zeros(3 * config.n_embd)
    return tensors


def hf_stored(config: ModelConfig, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors that have not been read, under GPT-2's names and in its layout, float32.

    `lm_head.weight` is among them only where it is untied.
    """
    renamed = {}
    for name, each in tensors.items():
        prefix = "" if name == "lm_head.weight" else "transformer."
        renamed[f"{prefix}{name}"] = (each.turned() if LINEAR.match(name) else each).as_type(torch.float32)
    if not config.qkv_bias:
        for layer in range(config.n_layer):
            renamed[f"transformer.h.{layer}.attn.c_attn.bias"] = zeros(3 * config.n_embd)
    return renamed
