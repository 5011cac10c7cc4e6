"""A whole dataset: plan, make the missing shards, write the index, then the manifest, whose presence commits it."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.config import DataConfig, digest
from gptpipe.data.dataset import INDEX, LATEST, MANIFEST, SOURCES, Dataset, open_dataset
from gptpipe.data.plan import BY_POSITION, FORMAT_VERSION, DatasetPlan, make_plan
from gptpipe.data.shards import ShardFile, ShardReport, ShardTask, existing_shard, make_shard
from gptpipe.data.sources import Source
from gptpipe.errors import UserError
from gptpipe.wording import counted

log = logging.getLogger(__name__)

BATCH_BYTES = 8_000_000
BATCH_SHARDS = 256
_FEW = 5  # documents in a validation split

# a way to run `make_shard` over tasks; reports may come in any order
Runner = Callable[[list[ShardTask], int], Iterable[ShardReport]]


@dataclass(frozen=True)
class TokenizeResult:
    """What tokenizing came to. `already_done` means that the dataset was there and nothing was read."""

    dataset: str
    id: str
    documents: int
    tokens: int
    shards: int
    shards_written: int
    megabytes_per_second: float | None  # source text over the whole time; None when already done
    already_done: bool
    dropped: dict[str, int]
    splits: dict[str, int]  # tokens of each

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tokenize(config: DataConfig, out: str, run: Runner | None = None) -> TokenizeResult:
    """Make the dataset of `config` in `<out>/<id>/`, unless it is there.

    Args:
        out: folder or URL for datasets.
        run: how shards are made; by default on `config.workers` processes of this machine.

    Raises:
        UserError: sources that cannot be used, or a split that would be empty. Nothing is committed.
    """
    began = time.perf_counter()
    storage.sweep_temporaries(out, below=False)
    earlier = _earlier(config, out)
    plan = make_plan(config, out, lambda source: _known_split(earlier, source, config))
    storage.sweep_temporaries(plan.url)
    if storage.exists(storage.join(plan.url, MANIFEST)):
        dataset = open_dataset(plan.url)
        _remember(dataset, config, out)
        return _result(dataset, 0, None)
    reports: dict[str, ShardReport] = {}
    missing = []
    for task in shard_tasks(plan, config, earlier):
        report = existing_shard(task)
        if report is not None:
            reports[report.hash] = report
        else:
            missing.append(task)
    for report in (run or run_in_processes)(missing, config.workers):
        reports[report.hash] = report
    dataset = commit(plan, config, [reports[shard.hash] for shard in plan.shards])
    _remember(dataset, config, out)
    written = sum(not task.is_copy for task in missing)
    size = sum(shard.size for shard in plan.shards)
    return _result(dataset, written, size / 1e6 / max(time.perf_counter() - began, 1e-9))


def shard_tasks(plan: DatasetPlan, config: DataConfig, earlier: Dataset | None) -> list[ShardTask]:
    """One task a shard; what an earlier dataset already holds is to be taken from there."""
    options: dict[str, Any] = {
        "tokenizer": config.tokenizer,
        "text_field": config.text_field,
        "validation": config.validation,
        "by_position": plan.options["split"] == BY_POSITION,
    }
    if earlier is None or (earlier.options, earlier.tokenizer) != (plan.options, plan.tokenizer):
        return [ShardTask(shard, plan.url, **options) for shard in plan.shards]
    holding = earlier.sources()
    files: dict[str, list[ShardFile]] = {}
    for file in earlier.index():
        files.setdefault(file.hash, []).append(file)
    tasks = []
    for planned in plan.shards:
        taken: dict[str, Any] = {}
        if planned.hash in files:
            taken = {"earlier": earlier.url, "files": tuple(files[planned.hash]), "is_copy": True}
        else:
            known = {
                source.path: holding[key]
                for source in planned.sources
                if holding.get(key := (source.corpus, source.path, source.sha256, source.errors)) in files
            }
            used = tuple(file for shard in sorted(set(known.values())) for file in files[shard])
            taken = {"earlier": earlier.url, "files": used, "unchanged": frozenset(known)}
        tasks.append(ShardTask(planned, plan.url, **options, **taken))
    return tasks


def run_in_processes(tasks: list[ShardTask], workers: int) -> Iterator[ShardReport]:
    """Make shards on processes of this machine, largest first so that none is left alone at the end."""
    count = worker_count(tasks, workers)
    if count <= 1:
        yield from map(make_shard, tasks)
        return
    with shard_pool(count) as pool:
        waiting: set[Future[ShardReport]] = set()
        try:
            for task in sorted(tasks, key=lambda task: -task.plan.size):
                if len(waiting) >= 4 * count:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                waiting.add(pool.submit(make_shard, task))
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def worker_count(tasks: list[ShardTask], workers: int) -> int:
    """Processes that are worth starting: as asked, or one a core, and no more than there are shards."""
    return min(workers or os.cpu_count() or 1, len(tasks))


def batched_by_size(tasks: list[ShardTask]) -> Iterator[list[ShardTask]]:
    """Tasks in groups of about `BATCH_BYTES` of source text, so that small shards share a Prefect task."""
    batch: list[ShardTask] = []
    for task in sorted(tasks, key=lambda task: -task.plan.size):
        if batch and (sum(t.plan.size for t in batch) + task.plan.size > BATCH_BYTES or len(batch) == BATCH_SHARDS):
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


def shard_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that make shards. Forked ones could inherit a lock that an S3 client or the logger holds."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def commit(plan: DatasetPlan, config: DataConfig, reports: list[ShardReport]) -> Dataset:
    """Write the index and then the manifest.

    Raises:
        UserError: there is no text at all, or a split that was asked for would be empty.
    """
    files = [
        file for split in ("train", "validation") for report in reports for file in report.files if file.split == split
    ]
    wanted = ["train", *(["validation"] if config.validation else [])]
    documents = {split: sum(file.rows for file in files if file.split == split) for split in wanted}
    corpora = ", ".join(corpus.url for corpus in config.corpus)
    if not files:
        raise UserError("no document with text in it", where=corpora, hint="check data.errors and data.text_field")
    for split, count in documents.items():
        if not count:
            raise UserError(
                f"the {split} split would be empty: {counted(sum(documents.values()), 'document')}, "
                f"data.validation={config.validation:g}",
                where=corpora,
                hint="give more documents, change data.validation, or set it to 0 to train without one",
            )
    if plan.options["split"] != BY_POSITION and 0 < documents.get("validation", _FEW) < _FEW:
        held = counted(documents["validation"], "document")
        log.warning("the validation split is %s: its numbers will say little about other text", held)
    index = pa.Table.from_pylist([asdict(file) for file in files], schema=_INDEX_SCHEMA)
    sources = [
        {
            "corpus": s.corpus,
            "path": s.path,
            "size": s.size,
            "sha256": s.sha256,
            "errors": s.errors,
            "hash": shard.hash,
        }
        for shard in plan.shards
        for s in shard.sources
    ]
    index_bytes = _parquet_bytes(index)
    source_bytes = _parquet_bytes(pa.Table.from_pylist(sources))
    storage.write_bytes(storage.join(plan.url, SOURCES), source_bytes)
    storage.write_bytes(storage.join(plan.url, INDEX), index_bytes)
    manifest = {
        "format": FORMAT_VERSION,
        "id": plan.id,
        "tokenizer": plan.tokenizer,
        "options": plan.options,
        "corpora": _totals(plan, reports),
        "index_sha256": _sha256(index_bytes),
        "sources_sha256": _sha256(source_bytes),
    }
    storage.write_json(storage.join(plan.url, MANIFEST), manifest)
    return open_dataset(plan.url)


_INDEX_SCHEMA = pa.schema(
    [
        ("corpus", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("documents", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("row_group_offsets", pa.list_(pa.int64())),
        ("hash", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
    ]
)


def _totals(plan: DatasetPlan, reports: list[ShardReport]) -> dict[str, Any]:
    """Per corpus: totals per split, number of sources, and what was dropped and why."""
    totals: dict[str, Any] = {}
    for shard, report in zip(plan.shards, reports, strict=True):
        corpus = totals.setdefault(shard.corpus, {"sources": 0, "dropped": Counter(), "splits": {}})
        corpus["sources"] += len(shard.sources)
        for counts in report.dropped.values():
            corpus["dropped"].update(counts)
        for file in report.files:
            split = corpus["splits"].setdefault(file.split, {"documents": 0, "tokens": 0, "bytes": 0, "shards": 0})
            for key, value in (
                ("documents", file.documents),
                ("tokens", file.tokens),
                ("bytes", file.bytes),
                ("shards", 1),
            ):
                split[key] += value
    for name, count in plan.empty_sources.items():
        totals[name]["sources"] += count
        totals[name]["dropped"]["empty"] += count
    return totals


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _remember(dataset: Dataset, config: DataConfig, out: str) -> None:
    """Note which dataset was asked for here last, and which for these corpora and options."""
    pointer = _pointer(out)
    noted = {"id": dataset.id, "of": {**pointer.get("of", {}), _request(config): dataset.id}}
    if noted != pointer:
        storage.write_json(storage.join(storage.normalize(out), LATEST), noted)


def _pointer(out: str) -> dict[str, Any]:
    try:
        pointer = storage.read_json(storage.join(storage.normalize(out), LATEST))
    except (FileNotFoundError, UserError):
        return {}
    return pointer if isinstance(pointer, dict) and isinstance(pointer.get("of"), dict) else {}


def _request(config: DataConfig) -> str:
    """What was asked for, whatever it holds today."""
    return digest(config.result_fields())


def _earlier(config: DataConfig, out: str) -> Dataset | None:
    """The dataset made last of these corpora, or else the last one made here: what it holds need not be made again."""
    pointer = _pointer(out)
    identity = pointer.get("of", {}).get(_request(config)) or pointer.get("id")
    if not identity:
        return None
    try:
        return open_dataset(storage.join(storage.normalize(out), str(identity)))
    except UserError:
        return None  # damaged or removed: everything is made again


def _known_split(earlier: Dataset | None, source: Source, config: DataConfig) -> str:
    """How an earlier dataset split this one source, which then need not be read to count its documents."""
    if earlier is None or earlier.options.get("text_field") != config.text_field:
        return ""
    try:
        held = list(earlier.sources())
    except UserError:
        return ""
    key = (source.corpus, source.path, source.sha256, source.errors)
    return str(earlier.options["split"]) if held == [key] else ""


def _result(dataset: Dataset, written: int, speed: float | None) -> TokenizeResult:
    return TokenizeResult(
        dataset=dataset.url,
        id=dataset.id,
        documents=dataset.total("documents"),
        tokens=dataset.total("tokens"),
        shards=dataset.total("shards"),
        shards_written=written,
        megabytes_per_second=round(speed, 2) if speed is not None else None,
        already_done=speed is None,
        dropped=dataset.dropped,
        splits={split: dataset.total("tokens", split) for split in ("train", "validation") if dataset.index(split)},
    )
