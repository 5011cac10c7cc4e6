"""WEIGHTS found: whatever layout people have, from a folder, a file, a URL or the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.model.gpt import GPT
from gptpipe.storage.fetch import local_copy
from gptpipe.storage.hub import HUB, from_hub
from gptpipe.tokenizer.huggingface import FILES as TOKENIZER_FILES
from gptpipe.weights import checkpoint as checkpoints
from gptpipe.weights.checkpoint import CONFIG, MODEL, Checkpoint
from gptpipe.weights.huggingface import model_config_from_hf
from gptpipe.weights.layouts import (
    SUPPORTED,
    from_openai,
    nanogpt_config,
    openai_config,
    standardized,
)
from gptpipe.weights.llmc import is_llmc, open_llmc
from gptpipe.weights.tensorflow import read_bundle
from gptpipe.weights.tensors import Stored, open_safetensors, open_torch
from gptpipe.weights.weights import DeferredTensors, Weights, from_our_tensors, from_tensors, tokenizer_of

T = TypeVar("T")
_TORCH = "pytorch_model.bin"
_HPARAMS = "hparams.json"
_STATE_DICTS = ("model_state_dict", "state_dict", "model")  # under which people keep one in a larger dictionary


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
        return from_tensors(url, _config_beside(url), _opened(url, open_safetensors), folder=storage.parent(url))
    if name.endswith((".pth", ".pt", ".bin")):
        return _read_state_dict(url)
    if name.endswith(".gguf"):
        raise UserError("GGUF is written, not read", where=url, hint="give the weights that it was made of")
    if storage.is_local_file(url):
        raise UserError("not a file of weights", where=url, hint=f"give {SUPPORTED}")
    if checkpoint := find_checkpoint(url):
        return of_checkpoint(checkpoint)
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


def of_checkpoint(checkpoint: Checkpoint) -> Weights:
    """The weights of a checkpoint of ours; its model file is fetched and checked at their first use."""
    config = checkpoint.json(CONFIG)

    def read() -> Mapping[str, Stored]:
        tensors = checkpoint.stored(MODEL)
        return from_tensors(checkpoint.url, checkpoint.json(CONFIG), tensors, folder=checkpoint.url).tensors

    model, tokenizer = (
        model_config_from_hf(config, checkpoint.url),
        tokenizer_of(config, checkpoint.url, checkpoint.url),
    )
    return Weights(checkpoint.url, model, DeferredTensors(read), checkpoint.model_sha256, tokenizer, checkpoint.step)


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
            return from_tensors(where, config, _tensors_of(storage.join(url, name)), folder=url)
        if storage.exists(index := storage.join(url, f"{name}.index.json")):
            tensors: dict[str, Stored] = {}
            for part in _parts(index):
                tensors |= _tensors_of(storage.join(url, part))
            return from_tensors(where, config, tensors, folder=url)
    raise UserError(f"the folder has no {MODEL}", where=where, hint=f"give {SUPPORTED}")


def _parts(index: str) -> list[str]:
    """The files that an index names."""
    places = storage.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise UserError("no map from tensors to files in it", where=index, hint="fetch or write it again")
    parts = sorted(set(places.values()))
    if outside := next((part for part in parts if "/" in part or "\\" in part), ""):
        raise UserError(f"names a file of another folder: {outside}", where=index, hint="fetch or write it again")
    return parts


def _read_openai(url: str) -> Weights:
    """OpenAI's folder, as it published GPT-2: hparams.json, and TensorFlow's model.ckpt.*."""
    config = openai_config(storage.read_json(storage.join(url, _HPARAMS)), url)
    return from_tensors(url, config, from_openai(read_bundle(storage.join(url, "model.ckpt"))))


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
    """Whether it is a tensor whose numbers all lie in memory: one that is repeated would grow as it is copied."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    there = value.device.type == "cpu" and not value.is_quantized
    return there and value.numel() * value.itemsize <= value.untyped_storage().nbytes()


def _read_state_dict(url: str) -> Weights:
    """A .pth, .pt or .bin: a state dict, nanoGPT's checkpoint with its shape beside it, or llm.c's own format."""
    loaded = _opened(url, lambda path, where: (open_llmc if is_llmc(path) else open_torch)(path, where))
    if isinstance(loaded, tuple):
        return from_tensors(url, *loaded)
    tensors = standardized(_state_dict(loaded, url), url)
    arguments = loaded.get("model_args")
    if isinstance(arguments, dict):
        return from_our_tensors(url, nanogpt_config(arguments, tensors, url), tensors)
    return from_our_tensors(url, _config_beside(url), tensors, storage.parent(url))


def _config_beside(url: str) -> dict[str, Any] | None:
    try:
        return storage.read_json(storage.join(storage.parent(url), CONFIG))
    except FileNotFoundError:
        return None
