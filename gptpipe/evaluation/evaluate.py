"""Cross-entropy, perplexity and bits per byte of a model: how sure they are, where they come from, how two compare.

Loss is in nats per token over all targets that are scored. Where documents are joined, the first token of all has
nothing before it and is not scored; separators between documents are predicted and counted in the nats, but not in the
bytes and words. Where they are apart, each is predicted from `<|endoftext|>` on, and separators are not scored.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gptpipe.config import EvaluateConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import evaluation_windows
from gptpipe.errors import UserError
from gptpipe.evaluation.breakdown import calibration, calibration_error, costliest, parts
from gptpipe.evaluation.confidence import Comparison, compare, mean_interval
from gptpipe.evaluation.documents import Documents, documents_of_split, documents_of_text, in_tokens_of
from gptpipe.evaluation.parallel import score_on_ranks
from gptpipe.evaluation.result import Evaluation, Scored, entropy, power
from gptpipe.evaluation.score import score, tokens_at_once
from gptpipe.evaluation.tally import Tally
from gptpipe.evaluation.tasks import read_questions, score_task
from gptpipe.evaluation.windows import apart_windows, spread
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import pick_device, to_precision
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.find import read_weights
from gptpipe.weights.weights import Weights, check_tokenizer, check_vocabulary, has_tokenizer
from gptpipe.wording import counted


def evaluate(
    weights: str | GPT,
    *,
    data: str | None = None,
    text: str | None = None,
    config: EvaluateConfig | None = None,
    tokenizer: str = "gpt2",
    cache: TokenCache | None = None,
) -> Evaluation:
    """Score weights on a split of a dataset or on a text.

    Args:
        weights: any WEIGHTS, or a model.
        data: URL of a dataset; its split is `config.split`.
        text: a text, taken as one document.
        tokenizer: of a model that is given as such, as `get_tokenizer` finds it.
        cache: where decoded tokens are; by default this machine's.

    Raises:
        UserError: weights, dataset and tokenizer do not fit, or no token has one before it.
    """
    return evaluate_whole(weights, data=data, text=text, config=config, tokenizer=tokenizer, cache=cache).evaluation


def evaluate_whole(
    weights: str | GPT | Weights,
    *,
    data: str | None = None,
    text: str | None = None,
    config: EvaluateConfig | None = None,
    tokenizer: str = "gpt2",
    cache: TokenCache | None = None,
    any_tokenizer: bool = False,
) -> Scored:
    """`evaluate`, with the sums and the documents that it comes from.

    Args:
        any_tokenizer: whether weights with another tokenizer than the dataset's are scored on the same documents in
            their own tokens; documents are then apart.
    """
    config = config or EvaluateConfig()
    if (data is None) == (text is None):
        raise UserError("give either a dataset or a text", where="evaluate", hint="--data URL or --text FILE")
    for each in config.tasks:
        read_questions(each)  # a file that cannot be used is named before anything is scored
    read = read_weights(weights) if isinstance(weights, str) else weights
    url = read.url if isinstance(read, Weights) else "a model in memory"
    tokenizer = read.tokenizer if isinstance(read, Weights) else tokenizer
    context, stride = _check_windows(config, read.config.context_length)
    if data is not None:
        dataset = open_dataset(data)
        encoding = dataset.load_tokenizer()
        stream = TokenStream(dataset, config.split, cache or TokenCache())
        if any_tokenizer and isinstance(read, Weights) and not has_tokenizer(read, encoding):
            documents, encoding = documents_of_split(stream, encoding), get_tokenizer(tokenizer)
            check_vocabulary(read.config, encoding.vocab_size, encoding.name, url)
            documents = in_tokens_of(encoding, documents, _chosen(documents, config))
            config = config.model_copy(update={"max_tokens": 0, "documents": "apart"})
        else:
            check_vocabulary(read.config, encoding.vocab_size, encoding.name, url)
            if isinstance(read, Weights):
                check_tokenizer(read, encoding, dataset.url)
            documents = documents_of_split(stream, encoding)
        what = f"{config.split} split of dataset {dataset.id}"
    else:
        assert text is not None
        encoding = get_tokenizer(tokenizer)
        check_vocabulary(read.config, encoding.vocab_size, encoding.name, url)
        documents = documents_of_text(text, encoding, apart=config.documents == "apart")
        what = f"a text of {counted(documents.tokens.length, 'token')}"
    windows, how, whole = _windows(documents, config, context, stride)
    batch_tokens = tokens_at_once(config.batch_size, context)
    tally = None
    if isinstance(read, Weights):
        if config.nproc > 1:
            tally = score_on_ranks(url, documents, windows, config, batch_tokens)
        # after the ranks have gone: it is not held beside theirs
        model = to_precision(read.build(), config.precision).to(pick_device(config.device))
    else:
        model = read
    if tally is None:
        tally = score(model, documents, windows, batch_tokens=batch_tokens, precision=config.precision)
    tasks = [
        score_task(each, model, encoding, batch_tokens=batch_tokens, precision=config.precision)
        for each in config.tasks
    ]
    words = documents.words(np.flatnonzero(tally.document_tokens)) if whole else None
    evaluation = _evaluation(tally, documents, words, what, how, config.precision, url)
    return Scored(replace(evaluation, tasks=tasks), tally, documents, model)


def in_one_window(config: EvaluateConfig, *models: Weights) -> EvaluateConfig:
    """The configuration in which all are scored in windows that the smallest context holds, unless one is given."""
    contexts = {model.config.context_length for model in models}
    if config.context_length or len(contexts) == 1:
        return config
    return config.model_copy(update={"context_length": min(contexts)})


def _check_windows(config: EvaluateConfig, has: int) -> tuple[int, int]:
    """Tokens of a window, and from one to the next."""
    context = config.context_length or has
    if context > has:
        raise UserError(
            f"a window of {context} tokens, the model's context is {has}",
            where="evaluate.context_length",
            hint="choose one between 1 and the model's context",
        )
    if config.stride > context:
        raise UserError(
            f"a stride of {config.stride} leaves tokens out between windows of {context}",
            where="evaluate.stride",
            hint="choose one between 1 and the window, or 0 for the window",
        )
    return context, config.stride or context


def _windows(documents: Documents, config: EvaluateConfig, context: int, stride: int) -> tuple[np.ndarray, str, bool]:
    """Windows, how they were cut in a person's words, and whether every document is scored as a whole."""
    if config.documents == "joined":
        windows = evaluation_windows(documents.tokens.length, context, stride, config.max_tokens)
        whole = len(windows) == len(evaluation_windows(documents.tokens.length, context, stride))
        limited = "" if whole else ", spread evenly over the split"
        how = f"{counted(len(windows), 'window')} of {context} tokens"
    else:
        chosen = _chosen(documents, config)
        windows = apart_windows(documents.starts[chosen], documents.ends[chosen], context, stride)
        whole = True
        how = f"{counted(len(chosen), 'document')} apart, in windows of {context} tokens"
        limited = "" if len(chosen) == len(documents) else ", spread evenly over the split"
    how += " that do not overlap" if stride == context else f", {stride} tokens from one to the next"
    return windows, how + limited, whole


def _chosen(documents: Documents, config: EvaluateConfig) -> np.ndarray:
    """Numbers of the documents that are scored where each is scored apart."""
    sizes = documents.ends - documents.starts
    return spread(sizes, config.max_tokens) if config.max_tokens else np.flatnonzero(sizes)


def _evaluation(
    tally: Tally, documents: Documents, words: int | None, what: str, how: str, precision: str, url: str
) -> Evaluation:
    loss = tally.nats / tally.tokens
    bits = tally.nats / math.log(2) / max(1, tally.bytes)
    return Evaluation(
        cross_entropy=loss,
        bits_per_token=loss / math.log(2),
        perplexity=power(loss),
        bits_per_byte=bits,
        byte_perplexity=power(bits * math.log(2)),
        word_perplexity=power(tally.nats / words) if words else None,
        interval=mean_interval(tally.document_nats, tally.document_tokens),
        accuracy=tally.accuracy,
        calibration_error=calibration_error(tally),
        tokens=tally.tokens,
        bytes=tally.bytes,
        words=words,
        documents=int((tally.document_tokens > 0).sum()),
        uniform=math.log(documents.tokenizer.vocab_size),
        unigram=entropy(documents.counts),
        scored=what,
        windows=how,
        precision=precision,
        weights=url,
        parts=parts(tally, documents),
        costliest=costliest(tally, documents),
        calibration=calibration(tally),
    )


def compare_tallies(first: Tally, second: Tally) -> Comparison:
    """The second model against the first, on the same documents.

    Raises:
        UserError: their tokens are others, so that a token's loss does not compare.
    """
    tokens = first.document_tokens
    if not np.array_equal(tokens, second.document_tokens):
        raise UserError(
            "the two do not predict the same tokens", where="--against", hint="give a window that fits both: --context"
        )
    return compare(first.document_nats, second.document_nats, tokens)
