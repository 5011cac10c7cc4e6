"""Evaluations that are kept: one done before for the same weights, data and settings is not done again."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Container
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from gptpipe import storage
from gptpipe.config import EvaluateConfig, digest
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.errors import Damaged
from gptpipe.evaluation.confidence import Comparison, by_corpus, compare
from gptpipe.evaluation.evaluate import evaluate_whole, in_one_window
from gptpipe.evaluation.result import Against, Evaluation
from gptpipe.evaluation.tasks import task_digest
from gptpipe.weights.find import read_weights
from gptpipe.weights.weights import Weights, has_tokenizer

STAGE_VERSION = 5
_FILES = "files"  # a key in a kept evaluation: the SHA-256 of the files that belong to it, by their endings
log = logging.getLogger(__name__)

_EVALUATION = TypeAdapter(Evaluation)


def evaluate_once(
    weights: str | Weights,
    *,
    data: str,
    config: EvaluateConfig,
    out: str,
    cache: TokenCache | None = None,
    any_tokenizer: bool = False,
) -> Evaluation:
    """`evaluate`, kept below `out` under the id of what was asked, and read from there the next time.

    `<id>.json` is the evaluation, `<id>.parquet` what each document cost, `<id>.html` the page.

    Args:
        any_tokenizer: whether weights with another tokenizer than the dataset's are scored, in their own tokens.
    """
    read = read_weights(weights) if isinstance(weights, str) else weights
    dataset = open_dataset(data)
    place = _place(read, dataset, config, out)
    if (kept := storage.read_result(f"{place}.json", _EVALUATION)) is not None:
        try:
            _check_files(place)
            return replace(kept, page=f"{place}.html", weights=read.url, data=dataset.url, already_done=True)
        except Damaged as error:
            log.warning("%s: %s, and is made again", error.where, error.message)
    return _evaluate(read, dataset, place, config, cache, any_tokenizer)


def documents_of(evaluation: Evaluation) -> pa.Table:
    """What each document cost in a kept evaluation. Raises as `read_documents` does."""
    return read_documents(evaluation.page.removesuffix(".html"))


def read_documents(place: str) -> pa.Table:
    """What each document cost in a kept evaluation.

    Args:
        place: URL of its files, without their endings.

    Raises:
        Damaged: it is gone, or not what it was.
    """
    return pq.read_table(io.BytesIO(_check_files(place, "parquet")["parquet"]))


def _check_files(place: str, *endings: str) -> dict[str, bytes]:
    """The files that belong to an evaluation, by their endings: these, or all.

    Raises:
        Damaged: one is gone, or not what it was.
    """
    url, contents = f"{place}.json", {}
    try:
        kept = storage.read_json(url)
        promised: dict[str, str] = kept.get(_FILES, {}) if storage.is_as_written(kept) else {}
        for ending in endings or promised:
            url = f"{place}.{ending}"
            contents[ending] = storage.read_bytes(url)
            if promised.get(ending) != hashlib.sha256(contents[ending]).hexdigest():
                raise Damaged("damaged: it is not what it was", where=url, hint="evaluate again")
    except FileNotFoundError:
        raise Damaged("missing", where=url, hint="evaluate again") from None
    if not contents:
        raise Damaged("damaged: it names no files", where=url, hint="evaluate again")
    return contents


def _evaluate(
    read: Weights, dataset: Dataset, place: str, config: EvaluateConfig, cache: TokenCache | None, any_tokenizer: bool
) -> Evaluation:
    """Evaluate, and keep what comes out."""
    data = dataset.url
    scored = evaluate_whole(read, data=data, config=config, cache=cache, any_tokenizer=any_tokenizer)
    parts = {"parquet": scored.table(), "html": scored.page().encode()}
    for ending, content in parts.items():
        storage.write_bytes(f"{place}.{ending}", content)
    evaluation = replace(scored.evaluation, page=f"{place}.html", data=dataset.url)
    values = {
        **evaluation.as_dict(),
        _FILES: {ending: hashlib.sha256(content).hexdigest() for ending, content in parts.items()},
    }
    storage.write_result(f"{place}.json", values)  # the last: with it the others are whole
    return evaluation


def _place(read: Weights, dataset: Dataset, config: EvaluateConfig, out: str) -> str:
    identity = digest(
        {
            "stage": STAGE_VERSION,
            "weights": read.identity,
            "dataset": dataset.id,
            "config": {key: value for key, value in config.result_fields().items() if key not in ("data", "tasks")},
            "tasks": [[task.partition(":")[0], task_digest(task)] for task in config.tasks],
        }
    )
    return storage.join(storage.normalize(out), identity)


def evaluate_against(
    weights: str,
    other: str,
    *,
    data: str,
    config: EvaluateConfig,
    out: str,
    cache: TokenCache | None = None,
    new: Container[str] | None = None,
) -> Evaluation:
    """`evaluate_once` of WEIGHTS and of others on the same documents, with the comparison in `against`.

    Others with the same tokenizer are scored in the same windows and compared per token. With another tokenizer each is
    scored in its own tokens, every document apart, and they are compared per byte.

    Args:
        new: names of documents, `corpus:document id`, that are compared apart from the others.

    Raises:
        UserError: one of the two cannot be read, or the weights have another vocabulary than the dataset.
    """
    own, others = (read_weights(each) for each in (weights, other))
    dataset = open_dataset(data)
    per_byte = not has_tokenizer(others, dataset.load_tokenizer())
    config = in_one_window(config, own, others)
    if per_byte:
        config = config.model_copy(update={"documents": "apart"})
    evaluation = evaluate_once(own, data=data, config=config, out=out, cache=cache)
    before = evaluate_once(others, data=data, config=config, out=out, cache=cache, any_tokenizer=True)
    first, second = documents_of(before), documents_of(evaluation)
    nats, others_nats = second["nats"].to_numpy(), first["nats"].to_numpy()
    corpus = np.array(second["corpus"].to_pylist())
    if per_byte:
        units = second["bytes"].to_numpy()
        scale: dict[str, Any] = {"unit": "byte", "units_per_token": evaluation.bytes / evaluation.tokens}
    else:
        units, scale = second["tokens"].to_numpy(), {}

    def parted(labels: np.ndarray) -> dict[str, Comparison]:
        parts = by_corpus(others_nats, nats, units, labels)
        return {name: replace(each, **scale) for name, each in parts.items()}

    comparison = replace(compare(others_nats, nats, units), **scale)
    ages = {}
    if new is not None:
        names = second["document"].to_pylist()
        ages = parted(np.array(["new text" if name in new else "old text" for name in names]))
    return replace(evaluation, against=Against(before, comparison, parted(corpus), ages))
