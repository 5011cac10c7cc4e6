"""Hugging Face's `config.json` and tensors, from ours and to ours: the one place that knows which files are whose."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gptpipe.config import ModelConfig, complaint
from gptpipe.errors import UserError
from gptpipe.model.gpt import GPT
from gptpipe.weights import gpt2, qwen3
from gptpipe.weights.layouts import SUPPORTED
from gptpipe.weights.tensors import Stored, zeros

_ARCHITECTURES: dict[str, ModuleType] = {"gpt2": gpt2, "qwen3": qwen3}


def model_config_from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """Our configuration of a Hugging Face GPT-2 or Qwen3 config.

    Raises:
        UserError: it is another architecture, or uses a switch that changes the computation.
    """
    kind = config.get("model_type")
    theirs = _ARCHITECTURES.get(str(kind))
    if theirs is None:
        raise UserError(f"a {kind or 'nameless'} model, not a GPT-2 or Qwen3", where=where, hint=f"give {SUPPORTED}")
    _check_switches(config, theirs, where)
    ours = ours_in(config, where)
    try:
        return ModelConfig(
            architecture=kind,
            **theirs.fields(config),
            qkv_bias=ours.get("qkv_bias", True),
            tie_weights=config.get("tie_word_embeddings", kind == "gpt2"),
            init=ours.get("init", "gpt2"),
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


def _check_switches(config: dict[str, Any], theirs: ModuleType, where: str) -> None:
    """A UserError for what would be computed otherwise than here."""
    only = dict(theirs.ONLY)
    if theirs is gpt2:
        width = config.get("n_embd")
        only["n_inner"] = (None, 4 * width if isinstance(width, int) else 0)
    said = [
        f"{key} is {config[key]!r}, only {allowed[-1]!r} is supported"
        for key, allowed in only.items()
        if key in config and config[key] not in allowed
    ]
    if theirs is qwen3 and (other := qwen3.other_positions(config)):
        said.append(f"{other}, which is not supported")
    if config.get("quantization_config"):
        said.append("the weights are quantised, which is not supported")
    if said:
        name = "GPT-2" if theirs is gpt2 else "Qwen3"
        raise UserError(said[0], where=where, hint=f"give a {name} without it")


def ours_in(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What Hugging Face's `config.json` cannot say, which stands under `gptpipe`; empty in one of another's."""
    ours = config.get("gptpipe") or {}
    if not isinstance(ours, dict):
        raise UserError("`gptpipe` in the config is no object", where=where, hint="take it out of config.json")
    return ours


def hf_config(config: ModelConfig, tokenizer: str, end_of_text: int) -> dict[str, Any]:
    """`config.json` as Hugging Face has it, with what it cannot say under `gptpipe`."""
    theirs = _ARCHITECTURES[config.architecture]
    own = {"qkv_bias": config.qkv_bias} if theirs is gpt2 else {}
    return {
        "architectures": [theirs.CLASS],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        **theirs.described(config),
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "use_cache": True,
        "dtype": "float32",
        "gptpipe": {"tokenizer": tokenizer, **own, "init": config.init},
    }


def hf_tensors(model: GPT) -> dict[str, Tensor]:
    """The weights under Hugging Face's names and in its layout, float32: views of the model's own where possible."""
    config, tensors = model.config, dict[str, Tensor]()
    theirs = _ARCHITECTURES[config.architecture]
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_weights:
            continue
        value = value.detach().float()
        value = value.t() if theirs.is_turned(name) else value
        tensors |= {part: value[rows] for part, rows in theirs.parts(config, name)}
    return tensors | {name: torch.zeros(size) for name, size in theirs.absent(config).items()}


def hf_stored(config: ModelConfig, tensors: Mapping[str, Stored], *, turned: bool = True) -> dict[str, Stored]:
    """Tensors that have not been read, under Hugging Face's names and in its layout, float32.

    `lm_head.weight` is among them only where it is untied.

    Args:
        turned: whether linear layers lie as they do there; otherwise (out, in).
    """
    renamed: dict[str, Stored] = {}
    theirs = _ARCHITECTURES[config.architecture]
    for name, each in tensors.items():
        whole = (each.turned() if turned and theirs.is_turned(name) else each).as_type(torch.float32)
        renamed |= {part: whole.rows(rows) for part, rows in theirs.parts(config, name)}
    return renamed | {name: zeros(size) for name, size in theirs.absent(config).items()}
