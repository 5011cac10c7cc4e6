"""Cross-entropy, perplexity and bits per byte of a model, beside the two baselines that give them a meaning.

Loss is in nats a token over all target tokens. The first token of a text has nothing before it and is not
scored; separators between documents are predicted and counted in the nats, but not in the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptpipe import storage
from gptpipe.config import EvaluateConfig, digest
from gptpipe.data.cache import TokenCache
from gptpipe.data.dataset import open_dataset
from gptpipe.data.loader import Batch, evaluation_batches, evaluation_windows
from gptpipe.data.tokens import TokenStream
from gptpipe.errors import UserError
from gptpipe.memory import keep_freed_memory
from gptpipe.model import GPT
from gptpipe.pretrained import Weights, check_vocabulary, read_weights
from gptpipe.settings import settings
from gptpipe.tokenizer import Tokenizer, get_tokenizer
from gptpipe.wording import counted

STAGE_VERSION = 1
_FEW_TOKENS = 1000


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a text.

    Attributes:
        cross_entropy: nats a token. perplexity: exp of it. bits_per_byte: bits a UTF-8 byte of the text scored.
        tokens: targets scored. bytes: UTF-8 bytes they stand for.
        uniform: cross-entropy of guessing among the whole vocabulary, ln V.
        unigram: cross-entropy of the best guess that ignores the context: the entropy of the text's own token
            frequencies, in the whole split or text.
        scored: what was scored. windows: how it was cut.
    """

    cross_entropy: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    uniform: float
    unigram: float
    scored: str
    windows: str
    weights: str
    already_done: bool = False

    @property
    def sentence(self) -> str:
        """What the number means."""
        vocabulary = round(math.exp(self.uniform))
        guess = f"cross-entropy {self.cross_entropy:.3f} nats a token: "
        if self.cross_entropy >= self.uniform:
            return f"{guess}no better than guessing among all {vocabulary:,} tokens ({self.uniform:.3f})"
        guess += f"as unsure as choosing among {self.perplexity:,.0f} of {vocabulary:,} tokens"
        if self.tokens < _FEW_TOKENS:  # the frequencies of so few tokens say nearly which they are
            return guess
        gain = self.unigram - self.cross_entropy
        side = f"{gain:.2f} nats better than" if gain >= 0 else f"{-gain:.2f} nats worse than"
        return f"{guess}, {side} knowing the token frequencies alone ({self.unigram:.3f})"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def evaluate(
    weights: str | GPT,
    *,
    data: str | None = None,
    text: str | None = None,
    config: EvaluateConfig | None = None,
    context_length: int | None = None,
    tokenizer: str = "gpt2",
) -> Evaluation:
    """Score weights on a split of a dataset or on a text.

    Args:
        weights: any WEIGHTS, or a model.
        data: URL of a dataset; its split is `config.split`.
        text: a text, taken as one document.
        context_length: tokens a window; by default the model's context.
        tokenizer: of a model that is given as such.

    Raises:
        UserError: weights, dataset and tokenizer do not fit, or there are fewer than two tokens.
    """
    config = config or EvaluateConfig()
    if isinstance(weights, GPT):
        model, url = weights, "a model in memory"
    else:
        read = read_weights(weights)
        model, url, tokenizer = read.build(), read.url, read.tokenizer
    if (data is None) == (text is None):
        raise UserError("give either a dataset or a text", where="evaluate", hint="--data URL or --text FILE")
    context = model.config.context_length if context_length is None else context_length
    if not 1 <= context <= model.config.context_length:
        raise UserError(
            f"a window of {context} tokens, the model's context is {model.config.context_length}",
            where="--context",
            hint="choose one between 1 and the model's context",
        )
    if data is not None:
        return _evaluate_split(model, url, data, config, context)
    assert text is not None
    return _evaluate_text(model, url, text, get_tokenizer(tokenizer), config, context)


def _evaluate_split(model: GPT, url: str, data: str, config: EvaluateConfig, context: int) -> Evaluation:
    dataset = open_dataset(data)
    tokenizer = dataset.load_tokenizer()
    check_vocabulary(model.config, tokenizer.vocab_size, tokenizer.name, url)
    stream = TokenStream(dataset, config.split, TokenCache(settings().home_path / "cache", settings().cache_bytes))
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    block = 1 << 24
    for start in range(1, stream.length, block):
        counts += np.bincount(stream.read(start, min(start + block, stream.length)), minlength=len(counts))
    batches = evaluation_batches(stream, context, config.batch_size, config.max_tokens)
    number = len(evaluation_windows(stream.length, context, config.max_tokens))
    return _score(
        model,
        batches,
        counts,
        tokenizer,
        url,
        f"{config.split} split of dataset {dataset.id}",
        f"{counted(number, 'window')} of {context} tokens that do not overlap"
        + (", spread evenly over the split" if config.max_tokens else ""),
    )


def _evaluate_text(
    model: GPT, url: str, text: str, tokenizer: Tokenizer, config: EvaluateConfig, context: int
) -> Evaluation:
    check_vocabulary(model.config, tokenizer.vocab_size, tokenizer.name, url)
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    if len(ids) < 2:
        raise UserError(
            f"{counted(len(ids), 'token')}: nothing has a token before it", where="text", hint="give a longer text"
        )
    windows = evaluation_windows(len(ids), context, config.max_tokens)
    tokens = torch.from_numpy(ids)
    batches = ((tokens[None, a : a + n], tokens[None, a + 1 : a + n + 1]) for a, n in windows)
    counts = np.bincount(ids[1:], minlength=tokenizer.vocab_size)
    return _score(
        model,
        batches,
        counts,
        tokenizer,
        url,
        f"a text of {counted(len(ids), 'token')}",
        f"{counted(len(windows), 'window')} of {context} tokens that do not overlap",
    )


def _score(
    model: GPT,
    batches: Iterable[Batch],
    counts: np.ndarray,
    tokenizer: Tokenizer,
    url: str,
    scored: str,
    windows: str,
) -> Evaluation:
    nats, tokens, size = score_batches(model, batches, torch.from_numpy(tokenizer.byte_lengths))
    loss = nats / tokens
    return Evaluation(
        cross_entropy=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=nats / math.log(2) / max(1, size),
        tokens=tokens,
        bytes=size,
        uniform=math.log(model.config.vocab_size),
        unigram=entropy(counts),
        scored=scored,
        windows=windows,
        weights=url,
    )


@torch.no_grad()
def score_batches(model: GPT, batches: Iterable[Batch], byte_lengths: Tensor) -> tuple[float, int, int]:
    """Summed nats, target tokens and UTF-8 bytes over batches, in evaluation mode and float32."""
    keep_freed_memory()
    training, device = model.training, next(model.parameters()).device
    model.eval()
    nats, tokens, size = 0.0, 0, 0
    for inputs, targets in batches:
        nats += float(model(inputs.to(device), targets.to(device)))
        tokens += targets.numel()
        size += int(byte_lengths[targets].sum())
    model.train(training)
    return nats, tokens, size


def entropy(counts: np.ndarray) -> float:
    """Entropy of frequencies, in nats: no guess that ignores the context has a lower cross-entropy on them."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def evaluate_once(weights: str, *, data: str, config: EvaluateConfig, out: str) -> Evaluation:
    """`evaluate`, kept as `<out>/<id>.json` and read from there the next time."""
    read: Weights = read_weights(weights)
    dataset = open_dataset(data)
    identity = digest(
        {
            "stage": STAGE_VERSION,
            "weights": read.identity,
            "dataset": dataset.id,
            "config": {key: value for key, value in config.result_fields().items() if key != "data"},
        }
    )
    place = storage.join(storage.normalize(out), f"{identity}.json")
    try:
        known = {key: value for key, value in storage.read_json(place).items() if key != "sentence"}
        return Evaluation(**{**known, "already_done": True})
    except FileNotFoundError:
        pass
    found = _evaluate_split(read.build(), read.url, dataset.url, config, read.config.context_length)
    storage.write_json(place, found.as_dict())
    return found
