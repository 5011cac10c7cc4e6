"""Evaluations that are kept: one done before for the same weights, data and settings is not done again."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from gptpipe import storage
from gptpipe.config import EvaluateConfig, digest
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.evaluation.confidence import by_corpus, compare
from gptpipe.evaluation.evaluate import evaluate_whole, in_one_window
from gptpipe.evaluation.result import Against, Evaluation
from gptpipe.evaluation.tasks import task_digest
from gptpipe.weights.find import read_weights
from gptpipe.weights.weights import Weights

STAGE_VERSION = 4
_EVALUATION = TypeAdapter(Evaluation)


def evaluate_once(
    weights: str | Weights, *, data: str, config: EvaluateConfig, out: str, cache: TokenCache | None = None
) -> Evaluation:
    """`evaluate`, kept below `out` under the id of what was asked, and read from there the next time.

    `<id>.json` is the evaluation, `<id>.parquet` what each document cost, `<id>.html` the page.
    """
    read = read_weights(weights) if isinstance(weights, str) else weights
    place = _place(read, data, config, out)
    try:
        kept = storage.read_as(f"{place}.json", _EVALUATION)
        return replace(kept, weights=read.url, already_done=True)
    except FileNotFoundError:
        pass
    scored = evaluate_whole(read, data=data, config=config, cache=cache)
    storage.write_bytes(f"{place}.parquet", scored.table())
    storage.write_bytes(f"{place}.html", scored.page().encode())
    evaluation = replace(scored.evaluation, page=f"{place}.html")
    storage.write_json(f"{place}.json", evaluation.as_dict())  # the last: with it the others are whole
    return evaluation


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


def evaluate_against(
    weights: str, other: str, *, data: str, config: EvaluateConfig, out: str, cache: TokenCache | None = None
) -> Evaluation:
    """`evaluate_once` of WEIGHTS and of others in the same windows, with the comparison in `against`.

    Raises:
        UserError: one of the two cannot be read, or has another vocabulary than the text.
    """
    both = [read_weights(each) for each in (weights, other)]
    config = in_one_window(config, *both)
    found, before = (evaluate_once(each, data=data, config=config, out=out, cache=cache) for each in both)
    tables = []
    for read in both:
        content = storage.read_bytes(f"{_place(read, data, config, out)}.parquet")
        tables.append(pq.read_table(io.BytesIO(content)))
    own, others = (table["nats"].to_numpy() for table in tables)
    tokens, corpus = tables[0]["tokens"].to_numpy(), np.array(tables[0]["corpus"].to_pylist())
    return replace(found, against=Against(before, compare(others, own, tokens), by_corpus(others, own, tokens, corpus)))
