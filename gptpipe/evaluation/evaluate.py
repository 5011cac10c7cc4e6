"""Cross-entropy, perplexity and bits per byte of a model: how sure they are, where they come from, how two compare.

Loss is in nats a token over all targets that are scored. Where documents are joined, the first token of all has nothing
before it and is not scored; separators between documents are predicted and counted in the nats, but not in the bytes
and words. Where they are apart, each is predicted from `<|endoftext|>` on, and separators are not scored.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.config import EvaluateConfig, digest
from gptpipe.config.settings import settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import evaluation_windows
from gptpipe.errors import UserError
from gptpipe.evaluation.breakdown import calibration, calibration_error, costliest, parts
from gptpipe.evaluation.confidence import Comparison, Interval, compare, mean_interval
from gptpipe.evaluation.documents import Documents, documents_of_split, documents_of_text
from gptpipe.evaluation.page import loss_page
from gptpipe.evaluation.parallel import score_on_ranks
from gptpipe.evaluation.score import score
from gptpipe.evaluation.tally import Tally
from gptpipe.evaluation.tasks import TaskScore, read_questions, score_task, task_digest
from gptpipe.evaluation.windows import apart_windows, spread
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import pick_device, to_precision
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.find import read_weights
from gptpipe.weights.weights import Weights, check_tokenizer, check_vocabulary
from gptpipe.wording import counted

STAGE_VERSION = 3
_FEW_TOKENS = 1000


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a text.

    Attributes:
        cross_entropy: nats a token. bits_per_token: the same in bits. perplexity: e to the nats.
        bits_per_byte: bits a UTF-8 byte of the text scored. byte_perplexity: 2 to the bits.
        word_perplexity: e to the nats a word; None where only a part is scored.
        interval: standard error and 95 % interval of the cross-entropy; None with too few documents.
        accuracy: share of targets that were the likeliest token.
        calibration_error: mean gap between the likeliest token's probability and how often it is right.
        tokens: targets scored. bytes, words: what they stand for. documents: how many hold some.
        uniform: cross-entropy of guessing among the whole vocabulary, ln V.
        unigram: cross-entropy of the best guess that ignores the context: the entropy of the text's own token
            frequencies, in the whole split or text.
        scored: what was scored. windows: how it was cut.
        parts: rows by corpus, length of document, tokens seen before, frequency of the token.
        costliest: documents, tokens and places that cost most.
        calibration: the likeliest token's probability against how often it was right.
        tasks: what it scored on tasks with a right answer.
        page: URL of a page that shows the loss in the text; empty where none was written.
        against: other weights on the same documents, where they were asked for.
    """

    cross_entropy: float
    bits_per_token: float
    perplexity: float
    bits_per_byte: float
    byte_perplexity: float
    word_perplexity: float | None
    interval: Interval | None
    accuracy: float
    calibration_error: float
    tokens: int
    bytes: int
    words: int | None
    documents: int
    uniform: float
    unigram: float
    scored: str
    windows: str
    precision: str
    weights: str
    parts: dict[str, list[dict[str, Any]]]
    costliest: dict[str, list[dict[str, Any]]]
    calibration: list[dict[str, Any]]
    tasks: list[TaskScore] = field(default_factory=list)
    page: str = ""
    already_done: bool = False
    against: Against | None = None

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
        return f"{guess}, {side} knowing the text's token frequencies alone ({self.unigram:.3f})"

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers a person compares, each with its unit in its name."""
        found: dict[str, Any] = {"cross-entropy, nats a token": self.cross_entropy}
        if self.interval is not None:
            found["95 % interval"] = f"{self.interval.low:.4f} to {self.interval.high:.4f}"
        return {
            **found,
            "cross-entropy, bits a token": self.bits_per_token,
            "perplexity, a token": self.perplexity,
            "perplexity, a word": self.word_perplexity,
            "perplexity, a byte": self.byte_perplexity,
            "bits per byte": self.bits_per_byte,
            "likeliest token right": self.accuracy,
            "calibration error": self.calibration_error,
            **{name: value for each in self.tasks for name, value in each.numbers.items()},
        }

    def as_dict(self) -> dict[str, Any]:
        found = {**asdict(self), "sentence": self.sentence}
        del found["against"]
        return found if self.against is None else {**found, "against": self.against.as_dict()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Evaluation:
        """From what `as_dict` gave."""
        known = {key: value for key, value in values.items() if key != "sentence"}
        known["interval"] = Interval(**known["interval"]) if known["interval"] else None
        known["tasks"] = [TaskScore(**each) for each in known["tasks"]]
        known["against"] = Against.of(known["against"]) if known.get("against") else None
        return cls(**known)


@dataclass(frozen=True)
class Against:
    """Other weights on the same documents.

    Attributes:
        evaluation: theirs. comparison: of the first's loss with theirs.
    """

    evaluation: Evaluation
    comparison: Comparison

    def as_dict(self) -> dict[str, Any]:
        comparison = {**asdict(self.comparison), "sentence": self.comparison.sentence}
        return {**self.evaluation.as_dict(), "comparison": comparison}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Against:
        """From what `as_dict` gave."""
        evaluation = Evaluation.of({key: value for key, value in values.items() if key != "comparison"})
        known = {key: value for key, value in values["comparison"].items() if key != "sentence"}
        interval = Interval(**known["interval"]) if known["interval"] else None
        return cls(evaluation, Comparison(**{**known, "interval": interval}))


@dataclass(frozen=True)
class Scored:
    """An evaluation with what it was made from."""

    evaluation: Evaluation
    tally: Tally
    documents: Documents
    model: GPT

    def page(self) -> str:
        """A page of HTML that shows the loss in the text."""
        return loss_page(self.evaluation.as_dict(), self.evaluation.numbers, self.model, self.documents, self.tally)

    def table(self) -> bytes:
        """Parquet with a row a document, for comparisons: name, corpus, tokens, bytes, nats."""
        columns = {
            "document": self.documents.names,
            "corpus": [self.documents.corpora[i] for i in self.documents.corpus],
            "tokens": self.tally.document_tokens,
            "bytes": self.tally.document_bytes,
            "nats": self.tally.document_nats,
        }
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file, compression="zstd")
        return file.getvalue()


def evaluate(
    weights: str | GPT,
    *,
    data: str | None = None,
    text: str | None = None,
    config: EvaluateConfig | None = None,
    tokenizer: str = "gpt2",
) -> Evaluation:
    """Score weights on a split of a dataset or on a text.

    Args:
        weights: any WEIGHTS, or a model.
        data: URL of a dataset; its split is `config.split`.
        text: a text, taken as one document.
        tokenizer: of a model that is given as such, as `get_tokenizer` finds it.

    Raises:
        UserError: weights, dataset and tokenizer do not fit, or no token has one before it.
    """
    return evaluate_whole(weights, data=data, text=text, config=config, tokenizer=tokenizer).evaluation


def evaluate_whole(
    weights: str | GPT | Weights,
    *,
    data: str | None = None,
    text: str | None = None,
    config: EvaluateConfig | None = None,
    tokenizer: str = "gpt2",
) -> Scored:
    """`evaluate`, with the sums and the documents that it comes from."""
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
        check_vocabulary(read.config, encoding.vocab_size, encoding.name, url)
        if isinstance(read, Weights):
            check_tokenizer(read, encoding, dataset.url)
        cache = TokenCache(settings().home_path / "cache", settings().cache_bytes)
        documents = documents_of_split(TokenStream(dataset, config.split, cache), encoding)
        what = f"{config.split} split of dataset {dataset.id}"
    else:
        assert text is not None
        encoding = get_tokenizer(tokenizer)
        check_vocabulary(read.config, encoding.vocab_size, encoding.name, url)
        documents = documents_of_text(text, encoding, apart=config.documents == "apart")
        what = f"a text of {counted(documents.tokens.length, 'token')}"
    windows, how, whole = _windows(documents, config, context, stride)
    batch_tokens = config.batch_size * context
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
    found = _evaluation(tally, documents, words, what, how, config.precision, url)
    return Scored(replace(found, tasks=tasks), tally, documents, model)


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
        chosen = np.arange(len(documents))
        if config.max_tokens:
            chosen = spread(documents.ends - documents.starts, config.max_tokens)
        windows = apart_windows(documents.starts[chosen], documents.ends[chosen], context, stride)
        whole = True
        how = f"{counted(len(chosen), 'document')} apart, in windows of {context} tokens"
        limited = "" if len(chosen) == len(documents) else ", spread evenly over the split"
    how += " that do not overlap" if stride == context else f", {stride} tokens from one to the next"
    return windows, how + limited, whole


def _evaluation(
    tally: Tally, documents: Documents, words: int | None, what: str, how: str, precision: str, url: str
) -> Evaluation:
    loss = tally.nats / tally.tokens
    bits = tally.nats / math.log(2) / max(1, tally.bytes)
    return Evaluation(
        cross_entropy=loss,
        bits_per_token=loss / math.log(2),
        perplexity=_power(loss),
        bits_per_byte=bits,
        byte_perplexity=_power(bits * math.log(2)),
        word_perplexity=_power(tally.nats / words) if words else None,
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


def _power(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def entropy(counts: np.ndarray) -> float:
    """Entropy of frequencies, in nats: no guess that ignores the context has a lower cross-entropy on them."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def evaluate_once(weights: str, *, data: str, config: EvaluateConfig, out: str) -> Evaluation:
    """`evaluate`, kept below `out` under the id of what was asked, and read from there the next time.

    `<id>.json` is the evaluation, `<id>.parquet` what each document cost, `<id>.html` the page.
    """
    read: Weights = read_weights(weights)
    place = _place(read, data, config, out)
    try:
        return replace(Evaluation.of(storage.read_json(f"{place}.json")), weights=read.url, already_done=True)
    except FileNotFoundError:
        pass
    scored = evaluate_whole(read, data=data, config=config)
    storage.write_bytes(f"{place}.parquet", scored.table())
    storage.write_bytes(f"{place}.html", scored.page().encode())
    found = replace(scored.evaluation, page=f"{place}.html")
    storage.write_json(f"{place}.json", found.as_dict())  # the last: with it the others are whole
    return found


def _place(read: Weights, data: str, config: EvaluateConfig, out: str) -> str:
    identity = digest(
        {
            "stage": STAGE_VERSION,
            "weights": read.identity,
            "dataset": open_dataset(data).id,
            "config": {key: value for key, value in config.result_fields().items() if key not in ("data", "tasks")},
            "tasks": [[task.partition(":")[0], task_digest(task)] for task in config.tasks],
        }
    )
    return storage.join(storage.normalize(out), identity)


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


def evaluate_against(weights: str, other: str, *, data: str, config: EvaluateConfig, out: str) -> Evaluation:
    """`evaluate_once` of WEIGHTS and of others in the same windows, with the comparison in `against`.

    Raises:
        UserError: one of the two cannot be read, or has another vocabulary than the text.
    """
    both = [read_weights(each) for each in (weights, other)]
    config = in_one_window(config, *both)
    found, before = (evaluate_once(each, data=data, config=config, out=out) for each in (weights, other))
    tables = []
    for read in both:
        content = storage.read_bytes(f"{_place(read, data, config, out)}.parquet")
        tables.append(pq.read_table(io.BytesIO(content)))
    own, others = (table["nats"].to_numpy() for table in tables)
    comparison = compare(others, own, tables[0]["tokens"].to_numpy())
    return replace(found, against=Against(before, comparison))
