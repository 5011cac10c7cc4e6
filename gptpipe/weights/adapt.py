"""Weights as a checkpoint to start from, made to fit what comes next: another context, another vocabulary."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptpipe import storage
from gptpipe.config import ModelConfig, PipelineConfig, digest, parse
from gptpipe.errors import UserError
from gptpipe.storage.hub import HUB
from gptpipe.tokenizer import Tokenizer, get_tokenizer
from gptpipe.weights import checkpoint as checkpoints
from gptpipe.weights.checkpoint import Checkpoint
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.find import read_weights
from gptpipe.weights.huggingface import hf_config, hf_stored
from gptpipe.weights.tensors import Stored
from gptpipe.weights.weights import Weights, check_vocabulary

log = logging.getLogger(__name__)


def adapted(weights: Weights, *, context_length: int = 0, tokenizer: str = "") -> Weights:
    """Weights with another context or vocabulary; unchanged where both are as they were.

    A shorter context drops the last position embeddings, a longer one repeats them from the first on (as Longformer
    starts, Beltagy et al. 2020). Rotary positions have none: a longer context is only warned of. A token that both
    vocabularies have keeps its embedding, another starts as the mean of the tokens that the old vocabulary writes it
    with.

    Args:
        context_length: tokens; 0 is the weights' own.
        tokenizer: what `get_tokenizer` finds the new one by; empty is the weights' own.
    """
    other_context = bool(context_length) and context_length != weights.config.context_length
    old = new = get_tokenizer(weights.tokenizer)
    if tokenizer:
        new = get_tokenizer(tokenizer)
    if not other_context and new.sha256 == old.sha256:
        return weights
    config, tensors = weights.config, dict(weights.tensors)
    if other_context:
        resized: ModelConfig = parse(ModelConfig, {**config.model_dump(), "context_length": context_length})
        if "wpe.weight" in tensors:
            index = torch.arange(context_length) % config.context_length
            tensors["wpe.weight"] = _rows(tensors["wpe.weight"], index)
        elif context_length > config.context_length:
            log.warning(
                "%s: %d tokens of context, the weights were trained with %d: what lies beyond is new to them",
                weights.url,
                context_length,
                config.context_length,
            )
        config = resized
    if new.sha256 != old.sha256:
        check_vocabulary(config, old.vocab_size, old.name, weights.url)
        pieces = _pieces(old, new)
        for name in ("wte.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = _means(tensors[name], pieces)
        config = config.model_copy(update={"vocab_size": new.vocab_size})
    return replace(weights, config=config, tensors=tensors, sha256="", tokenizer=new.reference)


def import_name(weights: str, *, context_length: int = 0, tokenizer: str = "") -> str:
    """What the folder of imported weights is called: the same for the same weights, wherever the process stands.

    Args:
        weights: any WEIGHTS. context_length, tokenizer: what they are adapted to.
    """
    source = weights if weights.startswith(HUB) else storage.normalize(weights)
    return digest([source, {"context_length": context_length, "tokenizer": tokenizer}])[:12]


def import_weights(weights: str, out: str, *, context_length: int = 0, tokenizer: str = "") -> Checkpoint:
    """Write WEIGHTS as a checkpoint, `<out>/step-<step>/`, unless the same weights are there already.

    Holds one tensor at a time.

    Args:
        context_length, tokenizer: what they are adapted to.

    Raises:
        UserError: they cannot be read, or other weights are there.
    """
    imported = adapted(read_weights(weights), context_length=context_length, tokenizer=tokenizer)
    encoding = get_tokenizer(imported.tokenizer)
    check_vocabulary(imported.config, encoding.vocab_size, encoding.name, imported.url)
    out = storage.normalize(out)
    there = checkpoints.open_checkpoint(storage.join(out, checkpoints.step_name(imported.step)))
    if there is not None:
        if read_weights(there.url).identity == imported.identity:
            return there
        raise UserError("other weights are there already", where=there.url, hint="choose another --out")
    storage.check_writable(out)
    storage.sweep_temporaries(out)
    storage.remove_if_empty(out)
    state = {"imported_from": _name(imported.url), "step": imported.step}
    config = hf_config(imported.config, encoding.name, encoding.end_of_text)
    tensors = hf_stored(imported.config, imported.tensors)
    return write_checkpoint(out, imported.step, model=tensors, config=config, state=state, others=encoding.files)


def _name(url: str) -> str:
    """What weights are called: a checkpoint of a training also by the training's id."""
    *_, folder, name = f"/{url.rstrip('/')}".split("/")
    return f"{folder}/{name}" if checkpoints.STEP.match(name) else name


def _rows(tensor: Stored, index: Tensor) -> Stored:
    return Stored((len(index), *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[index])


def _pieces(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """Of each token of the new vocabulary the old tokens that write it; all of them for one that stands for nothing."""
    everything: list[int] = []
    rows = [everything] * new.vocab_size
    for token, number in new.encoding._mergeable_ranks.items():
        rows[number] = old.encoding._encode_bytes(token) if token else everything
    special = old.encoding._special_tokens
    for text, number in new.encoding._special_tokens.items():
        if text in special:
            rows[number] = [special[text]]
        elif any(token.text == text and not token.special for token in new.added):
            rows[number] = old.encode(text)
        else:
            rows[number] = everything
    rows[new.end_of_text] = [old.end_of_text]
    return rows


def _means(tensor: Stored, pieces: list[list[int]]) -> Stored:
    def read() -> Tensor:
        rows = tensor.read().float()
        counts = torch.tensor([len(ids) for ids in pieces])
        flat = torch.from_numpy(np.fromiter((i for ids in pieces for i in ids), dtype=np.int64))
        sums = torch.zeros(len(pieces), rows.shape[1])
        sums.index_add_(0, torch.repeat_interleave(counts), rows[flat])
        sums[counts == 0] = rows.mean(0)
        return sums / counts.clamp(min=1).unsqueeze(1)

    return Stored((len(pieces), *tensor.shape[1:]), torch.float32, read)


def starting_from(config: PipelineConfig, checkpoint: str) -> PipelineConfig:
    """The configuration of a training that starts from a checkpoint: the model has its architecture and its shape.

    Dropout stays the configuration's, where the architecture has some. A warning tells where another architecture was
    configured.

    Raises:
        UserError: it is no checkpoint.
    """
    if not checkpoint:
        return config
    theirs, kept = read_weights(checkpoint).config, dict[str, Any](init=config.model.init)
    if theirs.architecture == "gpt2":
        kept["dropout"] = config.model.dropout
    if theirs.architecture != config.model.architecture:
        said = "%s is a %s: so is the model that is trained, not the %s that was configured"
        log.warning(said, checkpoint, theirs.family, config.model.family)
    return config.model_copy(update={"model": theirs.model_copy(update=kept)})
