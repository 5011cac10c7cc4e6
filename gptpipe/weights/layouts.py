"""The layouts that weights come in, turned into ours: GPT-2's names without prefix, linear layers (out, in).

Hugging Face's and OpenAI's hold linear layers (in, out), OpenAI's with a first dimension of one; nanoGPT's hold
(out, in) and may leave out every bias; the book's (*Build a Large Language Model From Scratch*) has query, key and
value apart, and names of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from gptpipe.errors import UserError
from gptpipe.weights import qwen3
from gptpipe.weights.tensors import Stored, stacked, zeros

SUPPORTED = (
    "a checkpoint folder or its parent, a Hugging Face folder of a GPT-2 or Qwen3 or hf:NAME, OpenAI's folder "
    "(hparams.json), a .safetensors, a state dict of Hugging Face's, nanoGPT's or the book's GPT (.pth, .pt, .bin), "
    "or llm.c's .bin"
)
LINEAR = re.compile(r"^h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_BUFFERS = re.compile(r"(^|\.)(attn\.bias|attn\.masked_bias|att\.mask)$")  # causal masks
_PREFIXES = ("module.", "_orig_mod.", "transformer.")  # of DDP, torch.compile, transformers and nanoGPT
_OTHERS = {
    "self_attn.q_proj.weight": "a Llama",
    "attn.q_proj.weight": "a GPT-J",
    "attention.query_key_value.weight": "a GPT-NeoX",
    "attention.self.query.weight": "a BERT",
    "SelfAttention.q.weight": "a T5",
}
_BOOK = {
    "tok_emb.weight": "wte.weight",
    "pos_emb.weight": "wpe.weight",
    "final_norm.scale": "ln_f.weight",
    "final_norm.shift": "ln_f.bias",
    "out_head.weight": "lm_head.weight",
}
_BOOK_BLOCK = {
    "att.out_proj.": "attn.c_proj.",
    "ff.layers.0.": "mlp.c_fc.",
    "ff.layers.2.": "mlp.c_proj.",
    "norm1.scale": "ln_1.weight",
    "norm1.shift": "ln_1.bias",
    "norm2.scale": "ln_2.weight",
    "norm2.shift": "ln_2.bias",
}


def standardized(tensors: dict[str, Stored], where: str) -> dict[str, Stored]:
    """Our names and layout, whichever of them it is; mask buffers are dropped.

    Raises:
        UserError: it is none of them; another architecture is named.
    """
    plain: dict[str, Stored] = {}
    for name, each in tensors.items():
        if (short := _without_prefix(name)) in plain:
            raise UserError(f"{short} is there twice, with and without a prefix", where=where, hint="save it once")
        if not _BUFFERS.search(short):
            plain[short] = each
    if "tok_emb.weight" in plain:
        return _from_book(plain, where)
    if qwen3.is_one(plain):
        return qwen3.standardized(plain, where)
    if "h.0.attn.q_norm.weight" in plain:  # a Qwen3's state dict of ours
        return plain
    first = plain.get("h.0.attn.c_attn.weight")
    if first is None:
        raise UserError(
            f"{_kind_of(plain)}, not a GPT-2 or Qwen3: no tensor h.0.attn.c_attn.weight among {_few(plain)}",
            where=where,
            hint=f"give {SUPPORTED}",
        )
    if len(first.shape) == 2 and first.shape[1] == 3 * first.shape[0]:  # (in, out)
        return {
            name: each.turned() if LINEAR.match(name) and len(each.shape) == 2 else each for name, each in plain.items()
        }
    return _with_biases(plain)


def _without_prefix(name: str) -> str:
    while prefix := next((each for each in _PREFIXES if name.startswith(each)), ""):
        name = name.removeprefix(prefix)
    return name


def _kind_of(names: Iterable[str]) -> str:
    kinds = (kind for name in names for end, kind in _OTHERS.items() if name.endswith(end))
    return next(kinds, "another model")


def _few(names: Iterable[str]) -> str:
    return ", ".join([*sorted(names)[:3], "…"])


def _with_biases(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """nanoGPT's `bias=False` leaves out all: zeros compute the same, and only query, key and value may lack theirs."""
    if any(name.endswith(".bias") for name in tensors):
        return tensors  # one that is missing among others is missed, not meant to be zero
    complete = dict(tensors)
    for name, each in tensors.items():
        bias = f"{name.removesuffix('weight')}bias"
        has_bias = name.startswith(("h.", "ln_f")) and not name.endswith("attn.c_attn.weight")
        if name.endswith(".weight") and has_bias and bias not in tensors:
            complete[bias] = zeros(each.shape[0])
    return complete


def _from_book(tensors: dict[str, Stored], where: str) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    apart: dict[str, dict[str, Stored]] = {}
    for name, each in tensors.items():
        if name in _BOOK:
            renamed[_BOOK[name]] = each
            continue
        match = re.match(r"trf_blocks\.(\d+)\.(.+)$", name)
        if match is None:
            renamed[name] = each  # named later, as one that is not part of it
            continue
        layer, rest = match.groups()
        if part := re.match(r"att\.W_(query|key|value)\.(weight|bias)$", rest):
            apart.setdefault(f"h.{layer}.attn.c_attn.{part[2]}", {})[part[1]] = each
            continue
        short = next((rest.replace(old, new) for old, new in _BOOK_BLOCK.items() if rest.startswith(old)), rest)
        renamed[f"h.{layer}.{short}"] = each
    for name, parts in apart.items():
        if absent := [part for part in ("query", "key", "value") if part not in parts]:
            raise UserError(
                f"{name}: no W_{absent[0]} beside the others", where=where, hint="save the whole model.state_dict()"
            )
        renamed[name] = stacked({f"{name}: W_{part}": parts[part] for part in ("query", "key", "value")}, where)
    return renamed


def guessed_config(tensors: dict[str, Stored], where: str) -> dict[str, Any]:
    """The shape of a state dict that came without a config, heads taken to be 64 wide as in all of GPT-2.

    Raises:
        UserError: it cannot be told.
    """
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"h\.(\d+)\.", name))}
    if "h.0.attn.q_norm.weight" in tensors:
        raise UserError("a Qwen3 without its shape", where=where, hint="put the model's config.json beside the file")
    try:
        vocab, width = tensors["wte.weight"].shape
        context = tensors["wpe.weight"].shape[0]
    except (KeyError, ValueError, IndexError):
        raise UserError("wte.weight or wpe.weight is missing", where=where, hint="give a GPT-2 state dict") from None
    if width % 64:
        raise UserError(
            f"its width {width} does not tell the number of heads",
            where=where,
            hint="put the model's config.json beside the file",
        )
    return {
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": context,
        "n_embd": width,
        "n_head": width // 64,
        "n_layer": max(blocks) + 1,
        "tie_word_embeddings": is_tied(tensors),
        "gptpipe": {"qkv_bias": "h.0.attn.c_attn.bias" in tensors},
    }


_OPENAI = {"g": "weight", "b": "bias", "w": "weight"}


def from_openai(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """OpenAI's under Hugging Face's names: `model/h0/attn/c_attn/w` (1, in, out) is `h.0.attn.c_attn.weight`."""
    renamed = {}
    for name, each in tensors.items():
        parts = name.removeprefix("model/").split("/")
        if re.fullmatch(r"h\d+", parts[0]):
            parts = ["h", parts[0][1:], *parts[1:]]
        last = _OPENAI.get(parts[-1])
        short = ".".join([*parts[:-1], last] if last else [*parts, "weight"])
        renamed[short] = each.without_first() if len(each.shape) == 3 else each
    return renamed


def openai_config(hparams: dict[str, Any], where: str) -> dict[str, Any]:
    """The shape in OpenAI's `hparams.json`.

    Raises:
        UserError: something of it is missing.
    """
    try:
        return {
            "model_type": "gpt2",
            "vocab_size": hparams["n_vocab"],
            "n_positions": hparams["n_ctx"],
            "n_embd": hparams["n_embd"],
            "n_head": hparams["n_head"],
            "n_layer": hparams["n_layer"],
            "tie_word_embeddings": True,
        }
    except KeyError as error:
        raise UserError(f"its hparams.json has no {error}", where=where, hint="give OpenAI's own folder") from None


def nanogpt_config(arguments: dict[str, Any], tensors: dict[str, Stored], where: str) -> dict[str, Any]:
    """The shape that nanoGPT keeps beside its weights, as `model_args`.

    Raises:
        UserError: something of it is missing.
    """
    try:
        return {
            "model_type": "gpt2",
            "vocab_size": tensors["wte.weight"].shape[0],
            "n_positions": arguments["block_size"],
            "n_embd": arguments["n_embd"],
            "n_head": arguments["n_head"],
            "n_layer": arguments["n_layer"],
            "resid_pdrop": arguments.get("dropout", 0.0),
            "tie_word_embeddings": is_tied(tensors),
            "gptpipe": {"qkv_bias": bool(arguments.get("bias", True))},
        }
    except KeyError as error:
        raise UserError(f"its model_args have no {error}", where=where, hint="give nanoGPT's own ckpt.pt") from None


def is_tied(tensors: dict[str, Stored]) -> bool:
    """Whether the output layer is the embedding: it is not there, or holds the same numbers."""
    head, embedding = tensors.get("lm_head.weight"), tensors["wte.weight"]
    return head is None or (head.shape == embedding.shape and torch.equal(head.read(), embedding.read()))
