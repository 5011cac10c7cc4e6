"""Weights in, from any of the layouts people have, and out in the one that Hugging Face's GPT-2 reads.

Inside, names are GPT-2's without prefix (`h.0.attn.c_attn.weight`) and linear layers are (out, in). GPT-2's
files hold them (in, out), as transformers' Conv1D does.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptpipe import checkpoint as checkpoints
from gptpipe import storage
from gptpipe.checkpoint import CONFIG, MODEL, Checkpoint, load_tensors
from gptpipe.config import ModelConfig, digest
from gptpipe.errors import UserError
from gptpipe.model import GPT

_LINEAR = re.compile(r"^h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_BUFFERS = re.compile(r"(^|\.)(attn\.bias|attn\.masked_bias)$")  # causal masks that old files carry
_SUPPORTED = "a checkpoint folder or its parent, a Hugging Face GPT-2 folder, a .safetensors, or a .pth state dict"


@dataclass(frozen=True)
class Weights:
    """Weights found and read: a model configuration and tensors in our layout.

    Attributes:
        url: what they were read from.
        identity: digest of tensors and shape, part of the id of whatever is made from them.
        tokenizer: name of the tokenizer they were trained with.
        step: of the training that made them, 0 where that is not known.
    """

    url: str
    identity: str
    config: ModelConfig
    tensors: dict[str, Tensor]
    tokenizer: str = "gpt2"
    step: int = 0

    def build(self, config: ModelConfig | None = None) -> GPT:
        """A model with these weights, in float32.

        Args:
            config: of the same shape; its dropout is taken. By default the weights' own.
        """
        config = config or self.config
        with torch.device("meta"):
            model = GPT(config)
        tensors = {name: tensor.to(torch.float32) for name, tensor in self.tensors.items()}
        if config.tie_weights:
            tensors["lm_head.weight"] = tensors["wte.weight"]
        model.load_state_dict(tensors, assign=True)
        if config.tie_weights:
            model.lm_head.weight = model.wte.weight
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model


def check_same_shape(wanted: ModelConfig, have: ModelConfig, where: str) -> None:
    """A UserError when weights cannot start a model of the wanted shape; every field that differs is named."""
    fields = [name for name in ModelConfig.model_fields if name not in ("dropout", "init")]
    different = [name for name in fields if getattr(wanted, name) != getattr(have, name)]
    if different:
        listed = ", ".join(f"{name} is {getattr(have, name)} instead of {getattr(wanted, name)}" for name in different)
        settings = " ".join(f"--set model.{name}={str(getattr(have, name)).lower()}" for name in different)
        raise UserError(f"the weights have another shape: {listed}", where=where, hint=f"give {settings}")


def load(weights: str, *, device: str | torch.device = "cpu") -> GPT:
    """A model in evaluation mode from any WEIGHTS: `model.generate`-ready, float32.

    Raises:
        UserError: there are none, they are damaged, or they are not a GPT-2's; the tensor is named.
    """
    model = read_weights(weights).build().to(device)
    return model.eval()


def read_weights(weights: str) -> Weights:
    """Find and read WEIGHTS: a checkpoint of ours or its parent, a Hugging Face folder, a file."""
    url = storage.normalize(weights)
    name = url.rsplit("/", 1)[-1]
    if name.endswith(".safetensors"):
        return _read_file(url, load_tensors(_content(url), url))
    if name.endswith((".pth", ".pt", ".bin")):
        return _read_file(url, _unpickle(url))
    if storage.is_local(url) and storage.local_path(url).is_file():
        raise UserError("not a file of weights", where=url, hint=f"give {_SUPPORTED}")
    if found := find_checkpoint(url):
        return _read_checkpoint(found)
    if storage.exists(storage.join(url, CONFIG)):
        file = storage.join(url, MODEL)
        if not storage.exists(file):
            raise UserError(f"the folder has no {MODEL}", where=url, hint=f"give {_SUPPORTED}")
        return _read_file(file, load_tensors(_content(file), file))
    inside = [name for name in storage.list_folders(url) if checkpoints.newest_checkpoint(storage.join(url, name))]
    if inside:
        raise UserError("trainings lie there, not weights", where=url, hint=f"give {storage.join(url, inside[-1])}")
    raise UserError("no weights there", where=url, hint=f"give {_SUPPORTED}")


def find_checkpoint(url: str) -> Checkpoint | None:
    """The checkpoint in a folder, or the newest complete one directly below it."""
    return checkpoints.open_checkpoint(url) or checkpoints.newest_checkpoint(url)


def _content(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError("no such file", where=url, hint=f"give {_SUPPORTED}") from None


def _unpickle(url: str) -> dict[str, Tensor]:
    """A state dict out of torch's own format, by the restricted loader that runs no code."""
    import io

    try:
        loaded = torch.load(io.BytesIO(_content(url)), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"it wants to import {wanted[1].rstrip('.')}" if wanted else "it is not a plain state dict"
        raise UserError(
            f"refused: {detail}", where=url, hint="save only model.state_dict(), or use safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"not a torch file, or cut off ({error})", where=url, hint="save it again") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError("not a state dict of tensors", where=url, hint="save model.state_dict()")
    return loaded


def _read_checkpoint(found: Checkpoint) -> Weights:
    config = found.json(CONFIG)
    tensors = _standardize(found.tensors(MODEL), found.url)
    return _weights(found.url, found.model_sha256, config, tensors, found.step)


def _read_file(url: str, tensors: dict[str, Tensor]) -> Weights:
    parent = url.rsplit("/", 1)[0]
    tensors = _standardize(tensors, url)
    try:
        config = storage.read_json(storage.join(parent, CONFIG))
    except FileNotFoundError:
        config = _guess_config(tensors, url)
    identity = digest({name: _tensor_digest(tensor) for name, tensor in sorted(tensors.items())})
    return _weights(url, identity, config, tensors, 0)


def _tensor_digest(tensor: Tensor) -> list[Any]:
    import hashlib

    data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(data).hexdigest()]


def _weights(url: str, identity: str, config: dict[str, Any], tensors: dict[str, Tensor], step: int) -> Weights:
    model = model_config_from_hf(config, url)
    ours = config.get("gptpipe") or {}
    if not model.qkv_bias:
        for name in [name for name in tensors if name.endswith("c_attn.bias")]:
            if tensors.pop(name).any():
                raise UserError(
                    f"{name} is not zero, but the config says that there is no QKV bias",
                    where=url,
                    hint="set gptpipe.qkv_bias to true in config.json",
                )
    check_tensors(model, tensors, url)
    if model.tie_weights:
        tensors.pop("lm_head.weight", None)
    # the number of heads, for one, does not show in the tensors
    identity = digest({"tensors": identity, "model": model.model_dump(mode="json", exclude={"dropout", "init"})})
    return Weights(url, identity, model, tensors, str(ours.get("tokenizer", "gpt2")), step)


def _standardize(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our names and layout: prefix and mask buffers dropped, linear layers turned to (out, in)."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("transformer.")
        if not _BUFFERS.search(short):
            plain[short] = tensor
    first = plain.get("h.0.attn.c_attn.weight")
    if first is None:
        raise UserError(
            f"not a GPT-2: no tensor h.0.attn.c_attn.weight among {', '.join(sorted(plain)[:3])}, …",
            where=where,
            hint=f"give {_SUPPORTED}",
        )
    if first.ndim == 2 and first.shape[1] == 3 * first.shape[0]:  # (in, out): GPT-2's own layout
        plain = {name: t.t().contiguous() if _LINEAR.match(name) and t.ndim == 2 else t for name, t in plain.items()}
    return plain


def check_tensors(config: ModelConfig, tensors: dict[str, Tensor], where: str) -> None:
    """Hold names and shapes against the configuration; every tensor that does not fit is named at once."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in GPT(config).state_dict().items()}
    if config.tie_weights:
        expected.pop("lm_head.weight")
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not part of it" for name in tensors if name not in expected and name != "lm_head.weight"]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems += [f"{name} is {t.dtype}" for name, t in tensors.items() if not t.is_floating_point()]
    if problems:
        raise UserError(
            f"{len(problems)} tensors do not fit the configuration: {'; '.join(problems)}",
            where=where,
            hint="give the config.json that belongs to these weights",
        )


def _guess_config(tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    """The shape of a state dict that came without a config, heads taken to be 64 wide as in all of GPT-2."""
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"h\.(\d+)\.", name))}
    try:
        vocab, width = tensors["wte.weight"].shape
        context = tensors["wpe.weight"].shape[0]
    except (KeyError, ValueError):
        raise UserError("wte.weight or wpe.weight is missing", where=where, hint="give a GPT-2 state dict") from None
    if width % 64:
        raise UserError(
            f"its width {width} does not tell the number of heads",
            where=where,
            hint="put the model's config.json beside the file",
        )
    head = tensors.get("lm_head.weight")
    untied = head is not None and not torch.equal(head, tensors["wte.weight"])
    return {
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": context,
        "n_embd": width,
        "n_head": width // 64,
        "n_layer": max(blocks) + 1,
        "tie_word_embeddings": not untied,
        "gptpipe": {"qkv_bias": "h.0.attn.c_attn.bias" in tensors},
    }


def model_config_from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """Our configuration of a Hugging Face GPT-2 config.

    Raises:
        UserError: it is another architecture, or uses a switch of GPT-2's that changes the computation.
    """
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UserError(f"a {kind or 'nameless'} model, not a GPT-2", where=where, hint=f"give {_SUPPORTED}")
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
    ours = config.get("gptpipe") or {}
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
    except ValueError as error:
        raise UserError(
            f"the config cannot be used: {error}", where=where, hint="give the model's own config.json"
        ) from None


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
        tensors[f"transformer.{name}"] = value.t() if _LINEAR.match(name) else value
    if not config.qkv_bias:  # transformers' GPT-2 always has them
        for layer in range(config.n_layer):
            tensors[f"transformer.h.{layer}.attn.c_attn.bias"] = torch.zeros(3 * config.n_embd)
    return tensors


def import_weights(weights: str, out: str) -> Checkpoint:
    """Write WEIGHTS as a checkpoint, `<out>/step-<step>/`, unless the same weights are there already.

    Raises:
        UserError: they cannot be read, or other weights are there.
    """
    from gptpipe.tokenizer import get_tokenizer

    read = read_weights(weights)
    tokenizer = get_tokenizer(read.tokenizer)
    check_vocabulary(read.config, tokenizer.vocab_size, tokenizer.name, read.url)
    state = {"imported_from": Path(read.url).name, "identity": read.identity, "step": read.step}
    out = storage.normalize(out)
    there = checkpoints.open_checkpoint(storage.join(out, checkpoints.step_name(read.step)))
    if there is not None:
        if there.json(checkpoints.STATE).get("identity") == read.identity:
            return there
        raise UserError("other weights are there already", where=there.url, hint="choose another --out")
    config = hf_config(read.config, tokenizer.name, tokenizer.end_of_text)
    return checkpoints.write_checkpoint(out, read.step, model=hf_tensors(read.build()), config=config, state=state)


def check_vocabulary(config: ModelConfig, vocab_size: int, tokenizer: str, where: str) -> None:
    """A UserError when weights and tokenizer do not have the same vocabulary."""
    if config.vocab_size != vocab_size:
        raise UserError(
            f"the weights know {config.vocab_size} tokens, the tokenizer {tokenizer!r} has {vocab_size}",
            where=where,
            hint="use the tokenizer that the weights were trained with",
        )
