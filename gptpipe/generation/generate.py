"""Continuing prompts with a KV cache: stop texts, batches of prompts of different lengths, and what is kept of them.

Past the context the window slides: by one token, and all is computed again for every token, as the book
does, or by half a context, and all is computed again once every half context.
"""

from __future__ import annotations

import io
import logging
import tokenize as python_tokenize
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from gptpipe import storage
from gptpipe.config import SampleConfig, digest
from gptpipe.generation.cpu import PackedDecoder
from gptpipe.generation.decoder import Decoder, Row
from gptpipe.generation.gpu import GraphedDecoder
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import pick_device, to_precision
from gptpipe.progress import NowAndThen
from gptpipe.tokenizer import Tokenizer, get_tokenizer
from gptpipe.weights.find import read_weights
from gptpipe.weights.weights import Weights, check_vocabulary
from gptpipe.wording import counted

log = logging.getLogger(__name__)

STAGE_VERSION = 2


Ended = Literal["length", "end_of_text", "stop"]


@dataclass(frozen=True)
class Sample:
    """A prompt and how it was continued.

    Attributes:
        text: the whole, prompt and continuation.
        tokens: the ids that were generated, `<|endoftext|>` and what reaches into a stop text left out.
        ended: why it ended: at its greatest length, at the end of the text, or before a stop text.
        logprobs: natural logarithms of the probabilities that the model itself gave to `tokens`, where asked for.
    """

    prompt: str
    text: str
    tokens: list[int]
    ended: Ended = "length"
    logprobs: list[float] | None = None

    @property
    def continuation(self) -> str:
        return self.text[len(self.prompt) :]


def generate(
    weights: str | Weights | GPT,
    prompts: Sequence[str],
    config: SampleConfig | None = None,
    *,
    tokenizer: str = "gpt2",
    logprobs: bool = False,
    on_token: Callable[[int, bytes], None] | None = None,
) -> list[Sample]:
    """Continue prompts. One that is longer than the context is read from its end.

    Args:
        weights: any WEIGHTS, what was read of them, or a model, which stays where and as it is.
        prompts: texts; `<|endoftext|>` in them is the special token.
        config: lengths, how tokens are drawn, stop texts and seed; its own prompts are not used.
        tokenizer: of a model that is given as such, as `get_tokenizer` finds it.
        logprobs: whether the samples hold those of their tokens.
        on_token: called with a prompt's number and the bytes of each token that is generated for it.

    Raises:
        UserError: weights that cannot be used, or a prompt without a token.
    """
    config = config or SampleConfig()
    if isinstance(weights, GPT):
        model, url = weights, "a model in memory"
    else:
        read = read_weights(weights) if isinstance(weights, str) else weights
        model = to_precision(read.build(), config.precision).to(pick_device("auto")).eval()
        url, tokenizer = read.url, read.tokenizer
    encoding: Tokenizer = get_tokenizer(tokenizer)
    check_vocabulary(model.config, encoding.vocab_size, encoding.name, url)
    # an empty prompt begins a document
    encoded = [encoding.encode(prompt, special=True) or [encoding.end_of_text] for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > model.config.context_length:
            log.warning(
                "the prompt %r… has %d tokens, the model's context is %d: it is read from its end",
                prompt[:40],
                len(ids),
                model.config.context_length,
            )
    scores: list[list[float]] | None = [[] for _ in prompts] if logprobs else None
    longest = max((len(text.encode()) for text in config.stop), default=0)

    def ended(row: int, ids: list[int]) -> bool:
        """Whether a stop text is there: every token is a byte at least, so that the last ones tell."""
        if on_token is not None:
            on_token(row, encoding.encoding.decode_single_token_bytes(ids[-1]))
        tail = encoding.decode(ids[-longest:]) if longest else ""
        return any(text in tail for text in config.stop)

    made = generate_ids(
        model,
        encoded,
        config,
        end_of_text=encoding.end_of_text,
        ended=ended,
        logprobs=scores,
        decoder=decoder_of(model, config.max_new_tokens, consume=not isinstance(weights, GPT)),
    )
    return [
        _sample(prompt, ids, encoding, config, scores[row] if scores is not None else None)
        for row, (prompt, ids) in enumerate(zip(prompts, made, strict=True))
    ]


def _sample(
    prompt: str, ids: list[int], encoding: Tokenizer, config: SampleConfig, scores: list[float] | None
) -> Sample:
    text = encoding.decode(ids)
    why: Ended = "length" if len(ids) == config.max_new_tokens else "end_of_text"
    stops = [place for stop in config.stop if (place := text.find(stop)) >= 0]
    if stops:
        why, text = "stop", text[: min(stops)]
        while ids and len(encoding.decode(ids)) > len(text):
            ids = ids[:-1]
    return Sample(prompt, prompt + text, ids, why, scores[: len(ids)] if scores is not None else None)


@torch.inference_mode()
def generate_ids(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    *,
    end_of_text: int | None = None,
    ended: Callable[[int, list[int]], bool] | None = None,
    logprobs: list[list[float]] | None = None,
    decoder: Decoder | None = None,
) -> list[list[int]]:
    """Continue prompts of token ids; returns the new ids of each, `end_of_text` not included.

    A row ends at `end_of_text`, after `config.max_new_tokens`, or when `ended` says so. As many as
    `config.batch_size` says are continued at once, and where one ends the next begins, so that the cache does not
    grow with the prompts. A prompt longer than the context is read from its end.

    Args:
        ended: called with a row's number and its new ids after each.
        logprobs: takes those of each row's new ids.
        decoder: made of the model before; by default one is made.
    """
    if not prompts:
        return []
    training = model.training
    model.eval()
    context = model.config.context_length
    decoder = decoder or decoder_of(model, config.max_new_tokens)
    decoder.forget()
    rows = [list(prompt) for prompt in prompts]
    new: list[list[int]] = [[] for _ in prompts]
    waiting = list(range(len(rows)))[::-1]  # the first at the end
    active: list[int] = []
    say = NowAndThen()

    def how_far(seconds: float) -> str:
        done, tokens = len(rows) - len(waiting) - len(active), sum(map(len, new))
        at_most = len(rows) * config.max_new_tokens
        return (
            f"continued {done:,} of {counted(len(rows), 'prompt')}  {tokens:,} of at most {at_most:,} tokens  "
            f"{tokens / seconds:,.0f} tokens/s"
        )

    while waiting or active:
        while waiting and len(active) < config.batch_size:
            active.append(waiting.pop())
        at = list(active)
        given = [Row(i, window_start(len(rows[i]), context, config.slide), rows[i]) for i in at]
        left = [min(_steady(row, context), config.max_new_tokens - len(new[row.number])) for row in given]
        count = min(decoder.ahead, *left)
        made = decoder.continued(given, config, count, logprobs=logprobs is not None)
        for turn in range(len(made.tokens)):
            for place, i in enumerate(at):
                if i not in active:  # it ended while the decoder went on
                    continue
                token = made.tokens[turn][place]
                rows[i].append(token)
                if token == end_of_text:
                    active.remove(i)
                    continue
                new[i].append(token)
                if logprobs is not None:
                    logprobs[i].append(made.logprobs[turn][place])
                stopped = ended is not None and ended(i, new[i])
                if stopped or len(new[i]) == config.max_new_tokens:
                    active.remove(i)
        if len(rows) > 1:  # a single one is shown as it comes
            say(how_far)
    model.train(training)
    return new


def decoder_of(model: GPT, new_tokens: int, *, consume: bool = False) -> Decoder:
    """The decoder for where the model is.

    Args:
        new_tokens: that a row is continued with at most.
        consume: whether the model's matrices may be dropped once they are laid out again: they are not held twice.
    """
    if model.wte.weight.device.type == "cpu" and _has_onednn():
        return PackedDecoder(model, new_tokens, consume=consume)
    return GraphedDecoder(model, new_tokens)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def window_start(length: int, context: int, slide: str) -> int:
    """The first token of a row that is read to predict the next; depends on the row's own length alone."""
    over = length - context
    if over <= 0 or slide == "one":
        return max(0, over)
    half = max(1, context // 2)
    return half * -(-over // half)


def _steady(row: Row, context: int) -> int:
    """Tokens that a row can be continued with before it begins somewhere else."""
    return row.start + context + 1 - len(row.tokens)


def python_line_share(samples: Sequence[Sample]) -> float | None:
    """Share of the generated lines that Python's `tokenize` accepts, last lines left out as cut off.

    A line is given on its own, without its indentation. Lines without a letter or digit do not count: a full stop is no
    Python, and no fault either. None if no line is left.
    """
    accepted = lines = 0
    for sample in samples:
        start = sample.prompt.rfind("\n") + 1  # the prompt's last line is continued
        for line in sample.text[start:].split("\n")[:-1]:
            if any(character.isalnum() for character in line):
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


def samples_of(weights: str, samples: Iterable[Samples]) -> Samples:
    """Those that these weights made."""
    return next(each for each in samples if each.weights == weights)


_SAMPLES = TypeAdapter(Samples)


def sample_once(weights: str, config: SampleConfig, *, out: str) -> Samples:
    """Samples of the configured prompts, kept as `<out>/<id>.json` and read from there the next time."""
    read = read_weights(weights)
    identity = digest({"stage": STAGE_VERSION, "weights": read.identity, "config": config.result_fields()})
    place = storage.join(storage.normalize(out), f"{identity}.json")
    if (kept := storage.read_result(place, _SAMPLES)) is not None:
        # the same weights may lie elsewhere too
        return replace(kept, weights=read.url, step=read.step, already_done=True)
    made = generate(read, config.prompts, config)
    samples = Samples(made, python_line_share(made), read.url, read.step)
    storage.write_result(place, samples.as_dict())
    return samples
