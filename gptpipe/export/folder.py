"""Weights out: a folder that `transformers` uses offline, with the tokenizer's files and a card of what is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptpipe import storage
from gptpipe.config import ModelConfig, digest
from gptpipe.errors import UserError
from gptpipe.evaluation.result import Evaluation
from gptpipe.launch.job import METRICS
from gptpipe.launch.metrics import keep_until
from gptpipe.storage.lease import Held, Lease
from gptpipe.storage.objects import PROBE
from gptpipe.tokenizer import END_OF_TEXT, Tokenizer, get_tokenizer, gpt2_files
from gptpipe.tokenizer.huggingface import SETTINGS, WHOLE
from gptpipe.version import __version__
from gptpipe.weights.checkpoint import CONFIG, MANIFEST, MODEL, STATE, Checkpoint, open_checkpoint
from gptpipe.weights.commit import model_file
from gptpipe.weights.find import read_weights
from gptpipe.weights.huggingface import hf_config, hf_stored
from gptpipe.weights.tensors import Stored, check_float16
from gptpipe.weights.weights import Weights, check_vocabulary
from gptpipe.wording import side_by_side

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_CARD, _GENERATION = "README.md", "generation_config.json"
_TOKENIZER = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
_FILES = {MODEL, CONFIG, _CARD, _GENERATION, WHOLE, *_TOKENIZER}


def check_place(out: str, *, replace: bool = False) -> None:
    """A UserError when a folder cannot be written, or holds what is not an export of ours.

    Args:
        replace: whether a whole export may be there; one that was broken off always may.
    """
    out = storage.normalize(out)
    names = []
    for name in storage.list_names(out):
        if name.startswith(PROBE):  # of a process that was killed
            storage.remove(storage.join(out, name))
        else:
            names.append(name)
    if CONFIG in names and not replace:
        raise UserError("a model is there already", where=out, hint="choose another folder")
    begun = MODEL in names and set(names) <= _FILES  # the model is the first that is written
    whole = CONFIG in names and MANIFEST not in names and "gptpipe" in storage.read_json(storage.join(out, CONFIG))
    if names and not begun and not whole:
        raise UserError("the folder holds something else", where=out, hint="choose another folder")
    storage.check_writable(out)
    storage.remove_if_empty(out)


def export_hf(
    weights: str, out: str, dtype: str = "float32", *, replace: bool = False, scores: Evaluation | None = None
) -> str:
    """Write WEIGHTS as a Hugging Face folder; `config.json` comes last, so that one without it is not whole.

    Args:
        out: a folder or URL that holds nothing yet, or an export that was broken off.
        dtype: of the weights in it: float32, bfloat16 or float16.
        replace: whether an earlier export may be there.
        scores: theirs, for the card.

    Returns:
        Its URL.

    Raises:
        UserError: the weights cannot be read, or something is there already.
    """
    out = storage.normalize(out)
    check_place(out, replace=replace)
    with alone(out):
        return _export(weights, out, dtype, replace, scores)


@contextmanager
def alone(out: str) -> Iterator[None]:
    """Only one process at a time exports to a place; another one is refused."""
    folder = storage.join(storage.parent(out), f".export-{digest(out)[:16]}")
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(Lease(folder))
            except Held as error:
                raise Held(error.message, where=out, hint=error.hint) from None
            yield
    finally:
        storage.remove_if_empty(folder)


def _export(weights: str, out: str, dtype: str, replace: bool, scores: Evaluation | None) -> str:
    if not replace and storage.exists(storage.join(out, CONFIG)):  # by one that was quicker
        raise UserError("a model is there already", where=out, hint="choose another folder")
    read = read_weights(weights)
    tokenizer = get_tokenizer(read.tokenizer)
    check_vocabulary(read.config, tokenizer.vocab_size, tokenizer.name, read.url)
    tensors = {
        name: Stored(each.shape, DTYPES[dtype], partial(_in_type, name, each, DTYPES[dtype], read.url))
        for name, each in hf_stored(read.config, read.tensors).items()
    }
    config = {**hf_config(read.config, tokenizer.name, tokenizer.end_of_text), "dtype": dtype}
    contents = {
        **_tokenizer_files(tokenizer, read.config.context_length),
        _GENERATION: _json(_generation(tokenizer.end_of_text)),
        _CARD: card(read, dtype, scores),
        CONFIG: _json(config),
    }
    storage.sweep_temporaries(out, below=False)
    with storage.open_write(storage.join(out, MODEL)) as file:
        for block in model_file(tensors):
            file.write(block)
        storage.remove(storage.join(out, CONFIG))  # an earlier export stays whole until this one can be
    for name, content in contents.items():
        storage.write_bytes(storage.join(out, name), content.encode())
    return out


def _in_type(name: str, stored: Stored, dtype: torch.dtype, where: str) -> Tensor:
    tensor = stored.read()
    if dtype == torch.float16:
        check_float16(name, tensor, where)
    return tensor.to(dtype)


def _generation(end_of_text: int) -> dict[str, Any]:
    ends = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    return {**ends, "do_sample": True, "max_new_tokens": 80, "temperature": 0.8, "top_k": 50}


def _tokenizer_files(tokenizer: Tokenizer, context_length: int) -> dict[str, str]:
    """The tokenizer's files as `transformers` reads them; none for tiktoken's other encodings, which keep no merges."""
    if tokenizer.files:
        files = {name: content.decode() for name, content in tokenizer.files.items()}
        return {**files, SETTINGS: _json({**json.loads(files[SETTINGS]), "model_max_length": context_length})}
    if tokenizer.name != "gpt2":
        return {}
    vocabulary, merges = gpt2_files()
    # GPT-2's own has nothing to pad with, and `pipeline` makes no batches then
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": context_length, "add_prefix_space": False}
    settings_of = {**settings, **special}
    contents = (json.dumps(vocabulary, ensure_ascii=False), merges, _json(special), _json(settings_of))
    return dict(zip(_TOKENIZER, contents, strict=True))


def card(weights: Weights, dtype: str, scores: Evaluation | None = None) -> str:
    """A model card: what is known of data, steps, tokens and scores, and nothing else."""
    config = weights.config
    biases = "yes" if config.qkv_bias else "no"
    rows = {
        "architecture": config.family,
        "parameters": f"{_parameters(weights):,}",
        "blocks, heads, width": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        **(_qwen3(config) if config.architecture == "qwen3" else {}),
        "context": f"{config.context_length:,} tokens",
        "vocabulary": f"{config.vocab_size:,} ({get_tokenizer(weights.tokenizer).name})",
        **({} if config.architecture == "qwen3" else {"biases of query, key and value": biases}),
        "output layer": "the embedding" if config.tie_weights else "of its own",
        "stored in": dtype,
        **_training_of(weights, scored=scores is not None),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    use = f"""```python
from transformers import pipeline

print(pipeline("text-generation", "path/to/this/folder")("{"def mean(values):"}")[0]["generated_text"])
```"""
    front = (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [{config.architecture}, gptpipe]\n---\n"
    )
    table = f"| | |\n| --- | --- |\n{table}"
    parts = [
        f"# A {config.family} model",
        table,
        *_scores(scores),
        "## How to use it",
        use,
        f"Exported by gptpipe {__version__}.",
    ]
    return front + "\n" + "\n\n".join(parts) + "\n"


def _qwen3(config: ModelConfig) -> dict[str, str]:
    """What a Qwen3 has and a GPT-2 does not."""
    return {
        "heads of keys and values, their width": f"{config.kv_heads}, {config.head_width}",
        "width inside the MLP": f"{config.inner}",
        "base of rotary positions": f"{config.rope_base:g}",
    }


def _scores(scores: Evaluation | None) -> list[str]:
    """Paragraphs on how good it is, and how that compares with what it started from."""
    if scores is None:
        return []
    columns, said = {"this model": scores.numbers}, [f"{scores.sentence[:1].upper()}{scores.sentence[1:]}."]
    if scores.against is not None:
        columns["before"] = scores.against.evaluation.numbers
        origin = _origin(scores.against.evaluation.weights)
        said.append(f"Against the weights it started from, `{origin}`: {scores.against.comparison.sentence}.")
    how = f"Scored: {scores.scored}, {scores.windows}, {scores.precision}; {scores.tokens:,} tokens."
    return ["## How good it is", *said, side_by_side(columns), how]


def _origin(url: str) -> str:
    """What weights are called: what they were imported from, or their folder's name."""
    checkpoint = open_checkpoint(url)
    state = _state_of(checkpoint) if checkpoint else {}
    return str(state.get("imported_from", url.rsplit("/", 1)[-1]))


def _state_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.json(STATE) if STATE in checkpoint.manifest["files"] else {}


def _parameters(weights: Weights) -> int:
    return sum(math.prod(each.shape) for each in weights.tensors.values())


def _training_of(weights: Weights, *, scored: bool) -> dict[str, str]:
    """What a checkpoint of ours says of its training; its logged validation only where there are no scores."""
    checkpoint = open_checkpoint(weights.url)
    if checkpoint is None:
        return {"read from": weights.url.rsplit("/", 1)[-1]}
    state = _state_of(checkpoint)
    if "imported_from" in state:
        return {"imported from": str(state["imported_from"])}
    rows = {"trained for": f"{checkpoint.step:,} steps"}
    if tokens := state.get("tokens_seen"):
        rows["tokens seen"] = f"{tokens:,}"
    if dataset := state.get("dataset"):
        rows["dataset"] = f"`{dataset}`"
    for name, value in ({} if scored else _validation(checkpoint.url, checkpoint.step, state)).items():
        rows[f"validation: {name}"] = value
    return rows


def _validation(url: str, step: int, state: dict[str, Any]) -> dict[str, str]:
    """The newest validation up to a checkpoint's step."""
    try:
        lines = keep_until(storage.read_bytes(storage.join(storage.parent(url), METRICS)), step).splitlines()
    except FileNotFoundError:
        return {}
    scored = [record for line in lines if "validation/loss" in (record := json.loads(line))]
    if not scored:
        return {}
    last = scored[-1]
    tokens = state.get("configuration", {}).get("train", {}).get("validate_tokens")
    of = f", on {tokens:,} tokens at most" if tokens else ""
    losses = {"cross-entropy": f"{last['validation/loss']:.4f} nats per token (at step {last['step']:,}{of})"}
    for key, name, unit in (("perplexity", "perplexity", ""), ("bits_per_byte", "bits per byte", "")):
        if (value := last.get(f"validation/{key}")) is not None:
            losses[name] = f"{value:,.3f}{unit}"
    return losses


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
