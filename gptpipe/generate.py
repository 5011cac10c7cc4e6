"""Sampling with a KV cache: greedy, temperature, top-k, top-p, batches of prompts of different lengths.

The draws of a row depend on (seed, row, position) alone, so that a prompt's text does not depend on which other
rows end early. Past the context the window slides: it is computed anew for every token, as the book does.
"""

from __future__ import annotations

import io
import tokenize as python_tokenize
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptpipe import storage
from gptpipe.config import SampleConfig, digest
from gptpipe.errors import UserError
from gptpipe.model import GPT, KVCache
from gptpipe.pretrained import check_vocabulary, read_weights
from gptpipe.tokenizer import Tokenizer, get_tokenizer

STAGE_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """A prompt and how it was continued: `text` is the whole, `tokens` the ids that were generated."""

    prompt: str
    text: str
    tokens: list[int]

    @property
    def continuation(self) -> str:
        return self.text[len(self.prompt) :]


def generate(
    weights: str | GPT, prompts: Sequence[str], config: SampleConfig | None = None, *, tokenizer: str = "gpt2"
) -> list[Sample]:
    """Continue prompts.

    Args:
        weights: any WEIGHTS, or a model.
        prompts: texts; `<|endoftext|>` in them is the special token.
        config: lengths, temperature, top-k, top-p and seed; its own prompts are not used.
        tokenizer: of a model that is given as such.

    Raises:
        UserError: weights that cannot be used, or a prompt without a token.
    """
    config = config or SampleConfig()
    if isinstance(weights, GPT):
        model, url = weights, "a model in memory"
    else:
        read = read_weights(weights)
        model, url, tokenizer = read.build().eval(), read.url, read.tokenizer
    encoding: Tokenizer = get_tokenizer(tokenizer)
    check_vocabulary(model.config, encoding.vocab_size, encoding.name, url)
    encoded = [encoding.encode(prompt, special=True) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise UserError("a prompt of zero tokens", where=f"prompt {prompt!r}", hint="give at least one character")
    made = generate_ids(model, encoded, config, end_of_text=encoding.end_of_text)
    return [Sample(p, p + encoding.decode(ids), ids) for p, ids in zip(prompts, made, strict=True)]


@torch.no_grad()
def generate_ids(
    model: GPT, prompts: Sequence[Sequence[int]], config: SampleConfig, *, end_of_text: int | None = None
) -> list[list[int]]:
    """Continue prompts of token ids; returns the new ids of each, `end_of_text` not included.

    A row ends at `end_of_text` or after `config.max_new_tokens`. A prompt longer than the context is read from
    its end.
    """
    if not prompts:
        return []
    training, device = model.training, next(model.parameters()).device
    model.eval()
    context = model.config.context_length
    rows = [list(prompt) for prompt in prompts]
    new: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(rows)))  # rows that have not ended
    cached: list[int] = []  # rows that the cache holds
    cache: KVCache | None = None
    for _ in range(config.max_new_tokens):
        if not active:
            break
        if cache is not None and cache.length < context:
            step = torch.tensor([[rows[i][-1]] for i in cached], device=device)
            places = torch.tensor([cached.index(i) for i in active], device=device)
            logits = model(step, cache=cache)[places, -1]
        else:
            longest = max(len(rows[i]) for i in active)
            cached = list(active)
            cache = KVCache(capacity=min(context, longest + config.max_new_tokens)) if longest < context else None
            logits = _read(model, [rows[i][-context:] for i in active], cache, device)
        positions = [len(rows[i]) for i in active]
        chosen = choose(logits.float().cpu(), config, rows=active, positions=positions)
        for i, token in zip(list(active), chosen, strict=True):
            rows[i].append(token)  # an ended row is fed its last token again; nobody reads what it gives
            if token == end_of_text:
                active.remove(i)
            else:
                new[i].append(token)
    model.train(training)
    return new


def _read(model: GPT, rows: list[list[int]], cache: KVCache | None, device: torch.device) -> Tensor:
    """Logits after the last token of each row, (len(rows), V), from the beginning of the rows."""
    longest = max(len(row) for row in rows)
    padding = [longest - len(row) for row in rows]
    tokens = torch.tensor([[0] * pad + row for pad, row in zip(padding, rows, strict=True)], device=device)
    cache = cache or KVCache(capacity=longest)
    cache.padding = torch.tensor(padding, device=device) if any(padding) else None
    hidden = model.hidden(tokens, cache)[:, -1]
    logits: Tensor = model.lm_head(hidden)
    return logits


def choose(logits: Tensor, config: SampleConfig, *, rows: Sequence[int], positions: Sequence[int]) -> list[int]:
    """The next token of each row of logits (B, V).

    Temperature 0 takes the likeliest. Otherwise logits are divided by it, cut to the `top_k` likeliest and to
    the fewest that reach `top_p` (nucleus sampling, Holtzman et al. 2020), and drawn from with a uniform number
    of (seed, row, position).
    """
    if config.temperature == 0:
        return [int(i) for i in logits.argmax(dim=-1)]
    ordered, indices = torch.sort(logits.double() / config.temperature, dim=-1, descending=True, stable=True)
    if 0 < config.top_k < ordered.shape[-1]:
        ordered, indices = ordered[:, : config.top_k], indices[:, : config.top_k]
    probabilities = torch.softmax(ordered, dim=-1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = torch.where(before < config.top_p, probabilities, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    chosen = []
    for line, index, row, position in zip(cumulative, indices, rows, positions, strict=True):
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, row, position]))).random()
        place = int(torch.searchsorted(line, draw * float(line[-1]), right=True))
        chosen.append(int(index[min(place, len(line) - 1)]))
    return chosen


def python_line_share(samples: Sequence[Sample]) -> float | None:
    """Share of the generated lines that Python's `tokenize` accepts, last lines left out as cut off.

    A line is given on its own, without its indentation; blank lines do not count. None if there is no line.
    """
    accepted = lines = 0
    for sample in samples:
        start = sample.prompt.rfind("\n") + 1  # the prompt's last line is continued
        for line in sample.text[start:].split("\n")[:-1]:
            if line.strip():
                lines += 1
                accepted += _tokenizes(line.strip())
    return accepted / lines if lines else None


def _tokenizes(line: str) -> bool:
    try:
        for token in python_tokenize.generate_tokens(io.StringIO(line + "\n").readline):
            if token.type == python_tokenize.ERRORTOKEN:
                return False
    except (python_tokenize.TokenError, SyntaxError) as error:
        # a bracket or triple quote that a later line closes is no fault of this line
        return "EOF in multi-line" in str(error)
    return True


@dataclass(frozen=True)
class Samples:
    """Samples of one model, and the share of their lines that are Python."""

    samples: list[Sample]
    python_lines: float | None
    weights: str
    step: int
    already_done: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def sample_once(weights: str, config: SampleConfig, *, out: str) -> Samples:
    """Samples of the configured prompts, kept as `<out>/<id>.json` and read from there the next time."""
    read = read_weights(weights)
    identity = digest({"stage": STAGE_VERSION, "weights": read.identity, "config": config.model_dump(mode="json")})
    place = storage.join(storage.normalize(out), f"{identity}.json")
    try:
        known = storage.read_json(place)
        return Samples(
            [Sample(**s) for s in known["samples"]],
            known["python_lines"],
            known["weights"],
            known["step"],
            True,
        )
    except FileNotFoundError:
        pass
    made = generate(read.build(), config.prompts, config, tokenizer=read.tokenizer)
    found = Samples(made, python_line_share(made), read.url, read.step)
    storage.write_json(place, found.as_dict())
    return found
