"""WEIGHTS: any of the layouts that people have, found, read as lean as it can be, and written as a checkpoint.

Inside, names are GPT-2's without prefix (`h.0.attn.c_attn.weight`) and linear layers are (out, in).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from gptpipe.config import ModelConfig, digest
from gptpipe.errors import UserError
from gptpipe.model.gpt import GPT, empty_model
from gptpipe.tokenizer import Tokenizer, get_tokenizer, is_own, reference_to, tokenizer_in
from gptpipe.weights.commit import model_file
from gptpipe.weights.huggingface import hf_stored, model_config_from_hf, ours_in
from gptpipe.weights.layouts import (
    guessed_config,
    is_tied,
    standardized,
)
from gptpipe.weights.tensors import Stored, is_finite
from gptpipe.wording import counted

log = logging.getLogger(__name__)

_READERS = 2
_NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_GPT2_TOKENS = 50257
_PADDED = 128  # GPT-2's vocabulary is padded to a multiple of at most that
_PADDED_OWN = 1024  # and one whose tokenizer lies beside the weights: Qwen's by 267 to 399


class DeferredTensors(Mapping[str, Stored]):
    """Tensors whose file is fetched and checked at their first use: what is only asked for its shape costs nothing."""

    def __init__(self, read: Callable[[], Mapping[str, Stored]]) -> None:
        self._read = cache(read)

    def __getitem__(self, name: str) -> Stored:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


@dataclass(frozen=True)
class Weights:
    """Weights: a model configuration, and tensors in our layout, which are read when they are needed.

    Attributes:
        url: where they lie.
        sha256: digest of the tensors where it is known without reading them; empty otherwise.
        tokenizer: what `get_tokenizer` finds the tokenizer by that they were trained with.
        step: of the training that made them, 0 where that is not known.
    """

    url: str
    config: ModelConfig
    tensors: Mapping[str, Stored]
    sha256: str = ""
    tokenizer: str = "gpt2"
    step: int = 0

    @cached_property
    def identity(self) -> str:
        """Digest of tensors and shape, whatever the layout they came in; a part of the id of what is made from them."""
        # the number of heads, for one, does not show in the tensors
        return digest({"tensors": self.sha256 or self._digest(), "model": self.config.computation()})

    def _digest(self) -> str:
        """What the checkpoint's file would have, were they written as one."""
        state = hashlib.sha256()
        for block in model_file(hf_stored(self.config, self.tensors)):
            state.update(block)
        return state.hexdigest()

    def build(self, config: ModelConfig | None = None) -> GPT:
        """A model with these weights, in float32. Holds the model and two tensors at a time.

        Args:
            config: of the same shape; its dropout is taken. By default the weights' own.
        """
        config = config or self.config
        model = empty_model(config)
        with ThreadPoolExecutor(_READERS) as pool:  # what one copies, another waits for
            tensors = dict(zip(self.tensors, pool.map(_own, self.tensors.values()), strict=True))
        if config.tie_weights:
            tensors["lm_head.weight"] = tensors["wte.weight"]
        model.load_state_dict(tensors, assign=True)
        if config.tie_weights:
            model.lm_head.weight = model.wte.weight
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model


def _own(stored: Stored) -> Tensor:
    """In float32 and in one piece."""
    tensor = stored.read()
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    own = torch.empty(stored.shape, dtype=torch.float32)
    return own.copy_(tensor)


def check_same_shape(needed: ModelConfig, have: ModelConfig, where: str) -> None:
    """A UserError when weights cannot start a model of the shape that is needed; every field that differs is named."""
    fields = [name for name in ModelConfig.model_fields if name not in ("dropout", "init")]
    different = [name for name in fields if getattr(needed, name) != getattr(have, name)]
    if different:
        listed = ", ".join(f"{name} is {getattr(have, name)} instead of {getattr(needed, name)}" for name in different)
        settings = " ".join(f"--set model.{name}={str(getattr(have, name)).lower()}" for name in different)
        raise UserError(f"the weights have another shape: {listed}", where=where, hint=f"give {settings}")


def from_tensors(url: str, config: dict[str, Any] | None, tensors: dict[str, Stored], folder: str = "") -> Weights:
    """Weights of tensors in any layout, their names, shapes and configuration held together.

    Args:
        config: as Hugging Face's; None is guessed from the tensors.
        folder: where a tokenizer may lie that belongs to them.

    Raises:
        UserError: they do not fit together, or are not a GPT-2's or Qwen3's.
    """
    return from_our_tensors(url, config, standardized(tensors, url), folder)


def from_our_tensors(url: str, config: dict[str, Any] | None, tensors: dict[str, Stored], folder: str = "") -> Weights:
    """Weights of tensors in our layout; arguments and errors are those of `from_tensors`."""
    tokenizer = tokenizer_of(config, folder, url)
    config = config or guessed_config(tensors, url)
    tensors = _without_padding(config, tensors, tokenizer, url)
    model = model_config_from_hf(config, url)
    if not model.qkv_bias:
        for name in [name for name in tensors if name.endswith("c_attn.bias")]:
            if tensors.pop(name).read().any():
                raise UserError(
                    f"{name} is not zero, but the config says that there is no QKV bias",
                    where=url,
                    hint="set gptpipe.qkv_bias to true in config.json",
                )
    check_tensors(model, tensors, url)
    if model.tie_weights and not is_tied(tensors):  # as transformers does
        log.warning("%s: lm_head.weight is not the embedding, as its config says: it is kept apart", url)
        model = model.model_copy(update={"tie_weights": False})
        check_tensors(model, tensors, url)
    if model.tie_weights:
        tensors.pop("lm_head.weight", None)
    tensors = {name: each.checked(partial(_check_finite, name, url)) for name, each in tensors.items()}
    return Weights(url, model, tensors, tokenizer=tokenizer)


def tokenizer_of(config: dict[str, Any] | None, folder: str, where: str) -> str:
    """What finds the tokenizer: the one that our configuration names, or whose files lie there, or else GPT-2's."""
    if config is not None and (name := ours_in(config, where).get("tokenizer")):
        return reference_to(str(name), folder)
    tokenizer = tokenizer_in(folder, where) if folder and config is not None else None
    return tokenizer.reference if tokenizer is not None else "gpt2"


def _check_finite(name: str, where: str, tensor: Tensor) -> None:
    """What is computed from tensors does not tell which one was not finite."""
    if not is_finite(tensor):
        raise UserError(
            f"{name} holds numbers that are not finite",
            where=where,
            hint="take an earlier checkpoint of the training that made it",
        )


def _without_padding(
    config: dict[str, Any], tensors: dict[str, Stored], tokenizer: str, where: str
) -> dict[str, Stored]:
    """Rows that only fill the vocabulary up to a round number, as nanoGPT's 50,304, are left out: no token has them."""
    embedding = tensors.get("wte.weight")
    have = embedding.shape[0] if embedding is not None and embedding.shape else 0
    true, most = have, _PADDED
    if tokenizer == "gpt2":
        true = _GPT2_TOKENS
    elif is_own(tokenizer.rpartition("#")[2]):
        true, most = get_tokenizer(tokenizer).vocab_size, _PADDED_OWN
    if config.get("vocab_size") != have or not 0 < have - true < most:
        return tensors
    log.info("%s: %d rows of padding are left out of a vocabulary of %d", where, have - true, have)
    config["vocab_size"] = true
    cut = {name: tensors[name].rows(slice(true)) for name in ("wte.weight", "lm_head.weight") if name in tensors}
    return tensors | cut


def check_tensors(config: ModelConfig, tensors: dict[str, Stored], where: str) -> None:
    """Hold names and shapes against the configuration; every tensor that does not fit is named at once."""
    model = empty_model(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    matrices = model.matrices()
    rows = {name: matrices[value] for name, value in model.named_parameters() if value in matrices}
    if config.tie_weights:
        expected.pop("lm_head.weight")
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not part of it" for name in tensors if name not in expected and name != "lm_head.weight"]
    problems += [
        f"{name} is {tensors[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    together = {name: [piece.shape[0] for piece in each.pieces] for name, each in tensors.items() if each.pieces}
    problems += [
        f"{name} is put together of {have} rows instead of {rows[name]}"
        for name, have in together.items()
        if name in rows and have != rows[name] and sum(have) == sum(rows[name])
    ]
    problems += [f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype not in _NUMBERS]
    if problems:
        raise UserError(
            f"the configuration does not fit {counted(len(problems), 'tensor')}: {'; '.join(problems)}",
            where=where,
            hint="give the config.json that belongs to these weights",
        )


def check_vocabulary(config: ModelConfig, vocab_size: int, tokenizer: str, where: str) -> None:
    """A UserError when weights and tokenizer do not have the same vocabulary."""
    if config.vocab_size != vocab_size:
        raise UserError(
            f"the weights know {config.vocab_size} tokens, the tokenizer {tokenizer!r} has {vocab_size}",
            where=where,
            hint="use the tokenizer that the weights were trained with",
        )


def has_tokenizer(weights: Weights, tokenizer: Tokenizer) -> bool:
    """Whether this is the tokenizer that the weights were trained with."""
    theirs = get_tokenizer(weights.tokenizer)
    return theirs.sha256 == tokenizer.sha256 or (
        theirs.vocab_size != weights.config.vocab_size and tokenizer.vocab_size == weights.config.vocab_size
    )


def check_tokenizer(weights: Weights, tokenizer: Tokenizer, where: str) -> None:
    """Refuse what was made with another tokenizer than the weights: the ids mean other text.

    Args:
        tokenizer: of what is at `where`, with as many tokens as the weights know.

    Raises:
        UserError: it is another.
    """
    theirs = get_tokenizer(weights.tokenizer)
    if not has_tokenizer(weights, tokenizer):
        raise UserError(
            f"made with the tokenizer {tokenizer.name}, the weights {weights.url} use {theirs.name}",
            where=where,
            hint=f"tokenize again with data.tokenizer={theirs.reference.partition('#')[0]}",
        )
