"""WEIGHTS: any of the layouts that people have, found, read as lean as it can be, and written as a checkpoint.

Inside, names are GPT-2's without prefix (`h.0.attn.c_attn.weight`) and linear layers are (out, in).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gptpipe import checkpoint as checkpoints
from gptpipe import storage
from gptpipe.bundle import read_bundle
from gptpipe.checkpoint import CONFIG, MODEL, Checkpoint
from gptpipe.config import ModelConfig, digest
from gptpipe.errors import UserError
from gptpipe.fetch import local_copy
from gptpipe.hf import hf_stored, model_config_from_hf, ours_in
from gptpipe.hub import HUB, from_hub
from gptpipe.layouts import (
    SUPPORTED,
    from_openai,
    guessed_config,
    is_tied,
    nanogpt_config,
    openai_config,
    standardized,
)
from gptpipe.llmc import is_llmc, open_llmc
from gptpipe.model import GPT, empty_model
from gptpipe.stored import Stored, is_finite, open_safetensors, open_torch
from gptpipe.tokenizer import Tokenizer, get_tokenizer, is_own, reference_to, tokenizer_in
from gptpipe.tokenizer.huggingface import FILES as TOKENIZER_FILES
from gptpipe.wording import counted

log = logging.getLogger(__name__)

T = TypeVar("T")
_TORCH = "pytorch_model.bin"
_HPARAMS = "hparams.json"
_STATE_DICTS = ("model_state_dict", "state_dict", "model")  # under which people keep one in a larger dictionary
_READERS = 2
_NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_GPT2_TOKENS = 50257
_PADDED = 128  # a vocabulary is padded to a multiple of at most that


@dataclass(frozen=True)
class Weights:
    """Weights that were found: a model configuration, and tensors in our layout, which are read when they are wanted.

    Attributes:
        url: where they were found.
        sha256: digest of the tensors where it is known without reading them; empty otherwise.
        tokenizer: what `get_tokenizer` finds the tokenizer by that they were trained with.
        step: of the training that made them, 0 where that is not known.
    """

    url: str
    config: ModelConfig
    tensors: dict[str, Stored]
    sha256: str = ""
    tokenizer: str = "gpt2"
    step: int = 0

    @cached_property
    def identity(self) -> str:
        """Digest of tensors and shape, whatever the layout they came in; a part of the id of what is made from them."""
        # the number of heads, for one, does not show in the tensors
        shape = self.config.model_dump(mode="json", exclude={"dropout", "init"})
        return digest({"tensors": self.sha256 or self._digest(), "model": shape})

    def _digest(self) -> str:
        """What the checkpoint's file would have, were they written as one."""
        state = hashlib.sha256()
        for block in checkpoints.model_file(hf_stored(self.config, self.tensors)):
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
    found = stored.read()
    if found.dtype == torch.float32 and found.is_contiguous():
        return found
    own = torch.empty(stored.shape, dtype=torch.float32)
    return own.copy_(found)


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
    """Find WEIGHTS: a checkpoint of ours or its parent, a Hugging Face folder or repository, a file.

    Raises:
        UserError: there are none, or they are not a GPT-2's.
    """
    if weights.startswith(HUB):
        return _read_folder(_from_hub(weights), weights)
    url = storage.normalize(weights)
    name = url.split("?")[0].rsplit("/", 1)[-1]
    if storage.is_local_folder(url):
        name = ""  # a folder may be called like a file
    if name.endswith(".safetensors"):
        return _weights(url, _config_beside(url), _opened(url, open_safetensors), folder=storage.parent(url))
    if name.endswith((".pth", ".pt", ".bin")):
        return _read_state_dict(url)
    if name.endswith(".gguf"):
        raise UserError("GGUF is written, not read", where=url, hint="give the weights that it was made of")
    if storage.is_local_file(url):
        raise UserError("not a file of weights", where=url, hint=f"give {SUPPORTED}")
    if found := find_checkpoint(url):
        read = (found.json(CONFIG), found.stored(MODEL), found.model_sha256, found.step)
        return _weights(found.url, *read, folder=found.url)
    if storage.exists(storage.join(url, CONFIG)):
        return _read_folder(url, url)
    if storage.exists(storage.join(url, _HPARAMS)):
        return _read_openai(url)
    inside = [name for name in storage.list_folders(url) if checkpoints.newest_checkpoint(storage.join(url, name))]
    if inside:
        raise UserError("trainings lie there, not weights", where=url, hint=f"give {storage.join(url, inside[-1])}")
    if storage.exists(storage.join(url, MODEL)):
        raise UserError(f"{MODEL} without a {CONFIG}", where=url, hint="put the one that belongs to it beside it")
    raise UserError("no weights there", where=url, hint=f"give {SUPPORTED}")


def find_checkpoint(url: str) -> Checkpoint | None:
    """The checkpoint in a folder, or the newest complete one directly below it."""
    return checkpoints.open_checkpoint(url) or checkpoints.newest_checkpoint(url)


def _from_hub(weights: str) -> str:
    """The local folder of a repository: its configuration, its tokenizer, and its weights in one format."""
    folder = from_hub(weights, [CONFIG, "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES])
    if not list(Path(folder).glob("*.safetensors")):
        folder = from_hub(weights, [CONFIG, f"{_TORCH[:-4]}*", *TOKENIZER_FILES])
    return folder


def _read_folder(url: str, where: str) -> Weights:
    """A Hugging Face folder: one file or several with an index, of safetensors or torch's own format."""
    try:
        config = storage.read_json(storage.join(url, CONFIG))
    except FileNotFoundError:
        raise UserError(f"no {CONFIG} there", where=where, hint=f"give {SUPPORTED}") from None
    model_config_from_hf(config, where)  # another architecture is named before its tensors are looked for
    for name in (MODEL, _TORCH):
        if storage.exists(storage.join(url, name)):
            return _weights(where, config, _tensors_of(storage.join(url, name)), folder=url)
        if storage.exists(index := storage.join(url, f"{name}.index.json")):
            tensors: dict[str, Stored] = {}
            for part in _parts(index):
                tensors |= _tensors_of(storage.join(url, part))
            return _weights(where, config, tensors, folder=url)
    raise UserError(f"the folder has no {MODEL}", where=where, hint=f"give {SUPPORTED}")


def _parts(index: str) -> list[str]:
    """The files that an index names."""
    places = storage.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise UserError("no map from tensors to files in it", where=index, hint="fetch or write it again")
    return sorted(set(places.values()))


def _read_openai(url: str) -> Weights:
    """OpenAI's folder, as it published GPT-2: hparams.json, and TensorFlow's model.ckpt.*."""
    config = openai_config(storage.read_json(storage.join(url, _HPARAMS)), url)
    return _weights(url, config, from_openai(read_bundle(storage.join(url, "model.ckpt"))))


def _tensors_of(url: str) -> dict[str, Stored]:
    return (
        _opened(url, open_safetensors) if url.endswith(".safetensors") else _state_dict(_opened(url, open_torch), url)
    )


def _opened(url: str, opener: Callable[[Path, str], T]) -> T:
    try:
        with local_copy(url) as path:
            return opener(path, url)
    except FileNotFoundError:
        raise UserError("no such file", where=url, hint=f"give {SUPPORTED}") from None


def _state_dict(loaded: dict[str, Any], url: str) -> dict[str, Stored]:
    for key in _STATE_DICTS:
        if isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not loaded or not all(isinstance(name, str) and _is_plain(value) for name, value in loaded.items()):
        raise UserError("not a state dict of tensors", where=url, hint="save model.state_dict()")
    return {name: Stored.of(value) for name, value in loaded.items()}


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor whose numbers lie in memory."""
    strided = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    return strided and value.device.type == "cpu" and not value.is_quantized


def _read_state_dict(url: str) -> Weights:
    """A .pth, .pt or .bin: a state dict, nanoGPT's checkpoint with its shape beside it, or llm.c's own format."""
    loaded = _opened(url, lambda path, where: (open_llmc if is_llmc(path) else open_torch)(path, where))
    if isinstance(loaded, tuple):
        return _weights(url, *loaded)
    tensors = standardized(_state_dict(loaded, url), url)
    arguments = loaded.get("model_args")
    config = nanogpt_config(arguments, tensors, url) if isinstance(arguments, dict) else _config_beside(url)
    return _of_our_names(url, config, tensors, folder=storage.parent(url))


def _config_beside(url: str) -> dict[str, Any] | None:
    try:
        return storage.read_json(storage.join(storage.parent(url), CONFIG))
    except FileNotFoundError:
        return None


def _weights(
    url: str,
    config: dict[str, Any] | None,
    tensors: dict[str, Stored],
    sha256: str = "",
    step: int = 0,
    *,
    folder: str = "",
) -> Weights:
    """Held together: names, shapes and configuration.

    Args:
        config: as Hugging Face's; None is guessed from the tensors.
        sha256: of the tensors' file in our layout, where that is what they were read from.
        folder: where a tokenizer may lie that belongs to them.
    """
    return _of_our_names(url, config, standardized(tensors, url), sha256, step, folder=folder)


def _of_our_names(
    url: str,
    config: dict[str, Any] | None,
    tensors: dict[str, Stored],
    sha256: str = "",
    step: int = 0,
    *,
    folder: str = "",
) -> Weights:
    tokenizer = _tokenizer_of(config, folder, url)
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
    tensors = {name: replace(each, read=partial(_finite, name, each, url)) for name, each in tensors.items()}
    return Weights(url, model, tensors, sha256, tokenizer, step)


def _tokenizer_of(config: dict[str, Any] | None, folder: str, where: str) -> str:
    """What finds the tokenizer: the one that our configuration names, or whose files lie there, or else GPT-2's."""
    if config is not None and (name := ours_in(config, where).get("tokenizer")):
        return reference_to(str(name), folder)
    found = tokenizer_in(folder, where) if folder and config is not None else None
    return found.reference if found is not None else "gpt2"


def _finite(name: str, stored: Stored, where: str) -> Tensor:
    """The tensor, once it is known to be finite: what is computed from it does not tell which one was not."""
    found = stored.read()
    if not is_finite(found):
        raise UserError(
            f"{name} holds numbers that are not finite",
            where=where,
            hint="take an earlier checkpoint of the training that made it",
        )
    return found


def _without_padding(
    config: dict[str, Any], tensors: dict[str, Stored], tokenizer: str, where: str
) -> dict[str, Stored]:
    """Rows that only fill the vocabulary up to a round number, as nanoGPT's 50,304, are left out: no token has them."""
    embedding = tensors.get("wte.weight")
    have = embedding.shape[0] if embedding is not None and embedding.shape else 0
    true = have
    if tokenizer == "gpt2":
        true = _GPT2_TOKENS
    elif is_own(tokenizer.rpartition("#")[2]):
        true = get_tokenizer(tokenizer).vocab_size
    if config.get("vocab_size") != have or not 0 < have - true < _PADDED:
        return tensors
    log.info("%s: %d rows of padding are left out of a vocabulary of %d", where, have - true, have)
    config["vocab_size"] = true
    cut = {name: tensors[name].rows(true) for name in ("wte.weight", "lm_head.weight") if name in tensors}
    return tensors | cut


def check_tensors(config: ModelConfig, tensors: dict[str, Stored], where: str) -> None:
    """Hold names and shapes against the configuration; every tensor that does not fit is named at once."""
    expected = {name: tuple(value.shape) for name, value in empty_model(config).state_dict().items()}
    if config.tie_weights:
        expected.pop("lm_head.weight")
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not part of it" for name in tensors if name not in expected and name != "lm_head.weight"]
    problems += [
        f"{name} is {tensors[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
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


def check_tokenizer(found: Weights, tokenizer: Tokenizer, where: str) -> None:
    """Refuse what was made with another tokenizer than the weights: the ids mean other text.

    Args:
        tokenizer: of what is at `where`, with as many tokens as the weights know.

    Raises:
        UserError: it is another.
    """
    theirs = get_tokenizer(found.tokenizer)
    if theirs.vocab_size == found.config.vocab_size and theirs.sha256 != tokenizer.sha256:
        raise UserError(
            f"made with the tokenizer {tokenizer.name}, the weights {found.url} use {theirs.name}",
            where=where,
            hint=f"tokenize again with data.tokenizer={theirs.reference.partition('#')[0]}",
        )
