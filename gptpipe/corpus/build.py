"""A whole dataset: plan, make the missing shards, write the index, then the manifest, whose presence commits it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.config import DataConfig, digest
from gptpipe.corpus.cuts import safe_places
from gptpipe.corpus.damage import shard_states, whole_dataset
from gptpipe.corpus.duplicates import DigestTask, Duplicates, find_duplicates, write_digests
from gptpipe.corpus.engine import Engine, Processes
from gptpipe.corpus.fingerprints import Fingerprints
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.plan import DatasetPlan, ShardPlan, finish_plan, identify, plan_buckets
from gptpipe.corpus.readers import remove_copies
from gptpipe.corpus.shards import ShardReport, ShardTask, make_shard
from gptpipe.corpus.sources import Source, list_sources
from gptpipe.corpus.text import facts_of_range
from gptpipe.dataset.dataset import FORMAT_VERSION, INDEX, LATEST, MANIFEST, SOURCES, Dataset, open_dataset
from gptpipe.dataset.index import index_table
from gptpipe.dataset.rows import SPLITS, shard_path
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer
from gptpipe.wording import counted

log = logging.getLogger(__name__)

_MUCH = 16_000_000  # bytes of new text for which the engine is started while it is hashed
_FEW = 5  # documents in a validation split
_SKIPPED = 100  # of what could not be read, named a corpus


@dataclass(frozen=True)
class TokenizeResult:
    """What tokenizing came to. `already_done` means that the dataset was there and nothing was read."""

    dataset: str
    id: str
    documents: int
    tokens: int
    shards: int
    shards_written: int  # made by this run; a shard is up to two files
    shards_copied: int  # taken from an earlier dataset
    megabytes_per_second: float | None  # source text over the whole time; None when already done
    already_done: bool
    dropped: dict[str, int]
    splits: dict[str, int]  # tokens of each

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tokenize(config: DataConfig, out: str, engine: Engine | None = None) -> TokenizeResult:
    """Make the dataset of `config` in `<out>/<id>/`, unless it is there.

    Args:
        out: folder or URL for datasets.
        engine: who makes the shards; by default `config.workers` processes of this machine.

    Raises:
        UserError: sources that cannot be used, or a split that would be empty. Nothing is committed.
    """
    began = time.perf_counter()
    # found once: what lies at a place may change while texts are read
    config = config.model_copy(update={"tokenizer": get_tokenizer(config.tokenizer).reference})
    with engine or Processes(config.workers) as started:
        known = Fingerprints(out)
        listed = list_sources(config)
        if sum(source.size for source in listed if not known.knows(source)) > _MUCH:
            started.start()
        return _tokenize(config, out, listed, known, started, began)


def known_dataset(config: DataConfig, out: str, listed: list[Source]) -> Dataset | None:
    """The dataset of these texts, where it is there and none of them must be hashed to know it.

    Args:
        listed: the sources of `config`.
    """
    config = config.model_copy(update={"tokenizer": get_tokenizer(config.tokenizer).reference})
    known, earlier = Fingerprints(out), _earlier(config, out)
    if not all(known.knows(source) for source in listed if source.size):
        return None
    few = earlier is not None and "validation_below" in earlier.options
    planned = identify(config, out, listed, known, partial(_known_split, earlier, config=config), few=few)
    return open_dataset(planned.url) if storage.exists(storage.join(planned.url, MANIFEST)) else None


class _EmptySplit(UserError):
    """All documents are on one side."""


def _tokenize(
    config: DataConfig, out: str, listed: list[Source], known: Fingerprints, engine: Engine, began: float
) -> TokenizeResult:
    storage.sweep_temporaries(out, below=False)
    storage.sweep_temporaries(str(storage.scratch_home()))
    earlier = _earlier(config, out)
    few = earlier is not None and "validation_below" in earlier.options
    find_split = partial(_known_split, earlier, config=config)
    try:
        planned = identify(config, out, listed, known, find_split, few=few)
        return _make(planned, config, out, earlier, known, engine, began)
    except _EmptySplit:
        if few or planned.by_position:
            raise
    planned = identify(config, out, listed, known, find_split, few=True)
    return _make(planned, config, out, earlier, known, engine, began)


def _make(
    planned: DatasetPlan,
    config: DataConfig,
    out: str,
    earlier: Dataset | None,
    known: Fingerprints,
    engine: Engine,
    began: float,
) -> TokenizeResult:
    storage.sweep_temporaries(planned.url)
    if (dataset := whole_dataset(planned, known)) is not None:
        _remember(dataset, config, out)
        return _result(dataset, [], None)
    own = _write_tokenizer(planned, config)
    try:
        plans = _plan_shards(planned, config, earlier, engine)
        reports: dict[str, ShardReport] = {}
        for report in engine.run(make_shard, shard_tasks(plans, planned, config, earlier)):
            reports[report.hash] = report
        dataset = commit(planned, plans, config, [reports[plan.hash] for plan in plans])
    except _EmptySplit:
        storage.remove_tree(planned.url)
        raise
    finally:
        remove_copies()
        if set(storage.list_names(planned.url)) <= own:
            storage.remove_tree(planned.url)
    known.remember(shard_states(dataset).values())
    _remember(dataset, config, out)
    size = sum(source.size for source in planned.sources)
    speed = size / 1e6 / max(time.perf_counter() - began, 1e-9)
    return _result(dataset, list(reports.values()), speed)


def _write_tokenizer(planned: DatasetPlan, config: DataConfig) -> set[str]:
    """Write the files of a tokenizer that came in files, before anybody reads them; returns their names."""
    files = get_tokenizer(config.tokenizer).files
    for name, content in files.items():
        storage.write_bytes(storage.join(planned.url, name), content)
    return set(files)


def _plan_shards(planned: DatasetPlan, config: DataConfig, earlier: Dataset | None, engine: Engine) -> list[ShardPlan]:
    """All shards, once it is known what must be: facts of large texts, and which documents are copies."""
    options = ReadOptions.of(config, by_position=planned.by_position, validation=planned.below)
    safe = safe_places(get_tokenizer(config.tokenizer))
    buckets = list(plan_buckets(planned, config.shard_megabytes))
    large = {b.sources[0]: None for b in buckets if b.is_range and b.sources[0].kind == "text"}
    with ThreadPoolExecutor() as pool:
        examined = pool.map(lambda source: facts_of_range(source, safe, options), large)
        facts = dict(zip(large, examined, strict=True))
    known = {bucket.hash: facts.get(bucket.sources[0]) if bucket.is_range else None for bucket in buckets}
    copies: Duplicates = {}
    if config.drop_duplicates:
        place = earlier.url if earlier is not None and earlier.options == planned.options else ""
        tasks = [
            DigestTask(bucket, planned.url, planned.tokenizer_reference, options, known[bucket.hash], place)
            for bucket in buckets
        ]
        documents = sum(report.documents for report in engine.run(write_digests, tasks))
        copies = find_duplicates(buckets, planned.url, documents)
    plans = []
    whole: dict[Source, dict[str, list[int]]] = {}  # what a text's first range says is true of all of it
    for bucket in buckets:
        duplicates = copies.get(bucket.hash, {})
        if bucket.is_range and bucket.sources[0].kind == "text":
            duplicates = whole.setdefault(bucket.sources[0], duplicates)
        plans.append(finish_plan(planned, bucket, duplicates, known[bucket.hash]))
    return plans


def shard_tasks(
    plans: list[ShardPlan], planned: DatasetPlan, config: DataConfig, earlier: Dataset | None
) -> Iterator[ShardTask]:
    """One task a shard, largest first; what an earlier dataset already holds is to be taken from there."""
    there = {entry.path for entry in storage.list_files(planned.url)}
    options = ReadOptions.of(config, by_position=planned.by_position, validation=planned.below)
    usable = earlier is not None and (earlier.options, earlier.tokenizer) == (planned.options, planned.tokenizer)
    holding = earlier.sources() if earlier is not None and usable else {}
    files = earlier.index().by_hash() if earlier is not None and usable else {}
    for plan in sorted(plans, key=lambda plan: -plan.size):
        taken: dict[str, Any] = {}
        if earlier is not None and plan.hash in files:
            taken = {"earlier": earlier.url, "files": tuple(files[plan.hash]), "is_copy": True}
        elif earlier is not None and not plan.bucket.is_range:
            known = {
                source.path: holding[key]
                for source in plan.sources
                if holding.get(key := (source.corpus, source.path, source.sha256, source.errors)) in files
            }
            used = tuple(file for shard in sorted(set(known.values())) for file in files[shard])
            taken = {"earlier": earlier.url, "files": used, "unchanged": frozenset(known)}
        look = any(shard_path(split, plan.hash) in there for split in SPLITS)
        yield ShardTask(plan, planned.url, planned.tokenizer_reference, options, look, **taken)


def commit(planned: DatasetPlan, plans: list[ShardPlan], config: DataConfig, reports: list[ShardReport]) -> Dataset:
    """Write the index and then the manifest.

    Args:
        reports: of the shards in `plans`, in the same order.

    Raises:
        UserError: there is no text at all, or a split that was asked for would be empty.
    """
    files = [
        file for split in ("train", "validation") for report in reports for file in report.files if file.split == split
    ]
    splits = ["train", *(["validation"] if config.validation else [])]
    documents = {split: sum(file.rows for file in files if file.split == split) for split in splits}
    corpora = ", ".join(corpus.url for corpus in config.corpus)
    if not files:
        raise UserError("no document with text in it", where=corpora, hint="check data.errors and data.text_field")
    for split, count in documents.items():
        if not count:
            there = sum(documents.values())
            same = f"all of {there:,} documents are the same text" if there > 1 else "there is one document"
            raise _EmptySplit(
                f"the {split} split would be empty: {same}, data.validation={config.validation:g}",
                where=corpora,
                hint="give more documents, change data.validation, or set it to 0 to train without one",
            )
    if planned.below != config.validation:
        log.info(
            "data.validation=%g would leave one split empty: %s for training, %s for validation",
            config.validation,
            *(counted(documents[split], "document") for split in splits),
        )
    if not planned.by_position and 0 < documents.get("validation", _FEW) < _FEW:
        held = counted(documents["validation"], "document")
        log.warning("the validation split is %s: its numbers will say little about other text", held)
    index_bytes = index_table(files)
    source_bytes = _sources_table(plans)
    storage.write_bytes(storage.join(planned.url, SOURCES), source_bytes)
    storage.write_bytes(storage.join(planned.url, INDEX), index_bytes)
    manifest = {
        "format": FORMAT_VERSION,
        "id": planned.id,
        "tokenizer": planned.tokenizer,
        "options": planned.options,
        "corpora": _totals(planned, plans, reports),
        "index_sha256": _sha256(index_bytes),
        "sources_sha256": _sha256(source_bytes),
    }
    storage.write_json(storage.join(planned.url, MANIFEST), manifest)
    return open_dataset(planned.url)


def _sources_table(plans: list[ShardPlan]) -> bytes:
    """Every source, and the shard that holds it; the first of them where it has several."""
    rows = [(source, plan.hash) for plan in plans if plan.bucket.start == 0 for source in plan.sources]
    columns = {
        name: [getattr(source, name) for source, _ in rows] for name in ("corpus", "path", "size", "sha256", "errors")
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**columns, "hash": [shard for _, shard in rows]}), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _totals(planned: DatasetPlan, plans: list[ShardPlan], reports: list[ShardReport]) -> dict[str, Any]:
    """Per corpus: totals per split, number of sources, what was dropped and why, and what could not be read."""
    totals: dict[str, Any] = {}
    for plan, report in zip(plans, reports, strict=True):
        corpus = totals.setdefault(plan.corpus, {"sources": 0, "dropped": Counter(), "skipped": [], "splits": {}})
        corpus["sources"] += len(plan.sources) if plan.bucket.start == 0 else 0
        for left_out in report.left_out.values():
            corpus["dropped"].update(left_out.counts)
            corpus["skipped"] += left_out.places[: _SKIPPED - len(corpus["skipped"])]
        for file in report.files:
            split = corpus["splits"].setdefault(file.split, {"documents": 0, "tokens": 0, "bytes": 0, "shards": 0})
            for key in ("documents", "tokens", "bytes"):
                split[key] += getattr(file, key)
            split["shards"] += 1
    for name, count in planned.empty_sources.items():
        totals[name]["sources"] += count
        totals[name]["dropped"]["empty"] += count
    return totals


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
    fields, tokenizer = config.result_fields(), get_tokenizer(config.tokenizer).name
    fields.pop("tokenizer", None)  # the same one may lie in several places
    return digest(fields if tokenizer == "gpt2" else {**fields, "tokenizer": tokenizer})


def _earlier(config: DataConfig, out: str) -> Dataset | None:
    """The dataset made last of these corpora, or else the last one made here: what it holds need not be made again."""
    pointer = _pointer(out)
    identity = pointer.get("of", {}).get(_request(config)) or pointer.get("id")
    if not identity:
        return None
    try:
        dataset = open_dataset(storage.join(storage.normalize(out), str(identity)))
        dataset.check_records()
    except UserError:
        return None  # damaged or removed: everything is made again
    return dataset


def _known_split(earlier: Dataset | None, source: Source, *, config: DataConfig) -> str:
    """How an earlier dataset split this one source, which then need not be read to count its documents."""
    if earlier is None:
        return ""
    deciding = ("text_field", "on_error", "min_bytes", "max_bytes")
    if any(earlier.options.get(n, DataConfig.model_fields[n].default) != getattr(config, n) for n in deciding):
        return ""
    try:
        held = list(earlier.sources())
    except UserError:
        return ""
    key = (source.corpus, source.path, source.sha256, source.errors)
    return str(earlier.options["split"]) if held == [key] else ""


def _result(dataset: Dataset, reports: list[ShardReport], speed: float | None) -> TokenizeResult:
    return TokenizeResult(
        dataset=dataset.url,
        id=dataset.id,
        documents=dataset.total("documents"),
        tokens=dataset.total("tokens"),
        shards=dataset.total("shards"),
        shards_written=sum(report.how == "made" for report in reports),
        shards_copied=sum(report.how == "copied" for report in reports),
        megabytes_per_second=round(speed, 2) if speed is not None else None,
        already_done=speed is None,
        dropped=dataset.dropped,
        splits={split: dataset.total("tokens", split) for split in SPLITS if dataset.total("shards", split)},
    )
