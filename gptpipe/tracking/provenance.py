"""What MLflow and the store tell of things that were made: what each was made from, and what was made from it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptpipe import storage
from gptpipe.dataset.dataset import MANIFEST, Dataset, open_dataset
from gptpipe.errors import UserError
from gptpipe.tracking.client import DATASET_TAG, TRAINING_TAG, RunLink, Tracking
from gptpipe.tracking.follow import INIT_TAG, SINCE_TAG
from gptpipe.tracking.moves import DECISION_TAG
from gptpipe.tracking.names import named_version
from gptpipe.tracking.references import all_runs, all_versions, folder_name
from gptpipe.tracking.registry import MODELS, checkpoint_of
from gptpipe.tracking.results import CHECKPOINT_TAG, DECIDING
from gptpipe.weights.checkpoint import STATE, list_checkpoints, open_checkpoint

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)
SOURCE, SHARD, DATASET, RUN, CHECKPOINT, VERSION = "source", "shard", "dataset", "run", "checkpoint", "version"
_SHORTEST = 6  # characters of an id that may stand for it
_BLOCK = 1 << 20
_NAMES = "a registered model, a checkpoint, a dataset, a run, or a file of text"


@dataclass(frozen=True)
class Node:
    """Something that was made, or a text that it was made from.

    Attributes:
        kind: source, shard, dataset, run, checkpoint or version.
        name: what a person calls it. place: its URL, or its page; empty where it has none.
        facts: what else is known of it, by name.
    """

    kind: str
    name: str
    place: str = ""
    facts: dict[str, str] = field(default_factory=dict)


class Provenance:
    """Which of the things that MLflow and the store know belong together. What is asked for becomes a node.

    Raises:
        UserError: MLflow or the store does not answer.
    """

    def __init__(self, store: str, tracking: Tracking) -> None:
        self.nodes: dict[str, Node] = {}
        self._store, self._tracking = storage.normalize(store), tracking
        self._datasets: dict[str, Dataset | None] = {}
        with tracking.reached() as client:
            self._runs = {run.info.run_id: run for run in all_runs(client) if TRAINING_TAG in run.data.tags}
            versions = all_versions(client)
            models = {name: client.get_registered_model(name).aliases for name in {each.name for each in versions}}
        self._aliases = {  # a search tells none
            (name, number): sorted(alias for alias, other in aliases.items() if str(other) == number)
            for name, aliases in models.items()
            for number in {str(each) for each in aliases.values()}
        }
        self._run_of = {folder_name(run.data.tags[TRAINING_TAG]): identity for identity, run in self._runs.items()}
        self._shards_of: dict[str, list[str]] = {}  # by source
        self._origins: dict[str, str] = {}
        self._by_shard: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
        self._unreadable: dict[str, str] = {}  # why, by URL
        self._versions: dict[str, list[str]] = {}  # by what `_short` makes of a checkpoint, as their own keys
        self._checkpoint_of: dict[str, str] = {}  # its URL by the version's key
        self._named: dict[str, list[Any]] = {}
        for version in versions:
            key = self._version(version)
            self._checkpoint_of[key] = checkpoint_of(version)
            self._versions.setdefault(_short(checkpoint_of(version)), []).append(key)
            self._named.setdefault(version.name, []).append(version)

    # --- what a name means

    def subjects(self, name: str) -> list[str]:
        """Keys of what a name means.

        Raises:
            UserError: nothing is called that, or several things are.
        """
        version = named_version(name, self._tracking)
        if version is not None:
            return [self._version(version)]
        if name in self._named:
            return [self._version(max(self._named[name], key=lambda version: int(version.version)))]
        url = storage.normalize(name)
        if open_checkpoint(url) is not None:
            return [self._checkpoint(url)]
        by_id = self._by_id(folder_name(name))
        if len(by_id) > 1:
            raise UserError("several things are called that", where=name, hint=f"give one: {', '.join(by_id[:4])}")
        if by_id:
            return by_id
        runs = [f"{RUN}:{identity}" for identity, run in self._runs.items() if run.info.run_name == name]
        if len(runs) > 1:
            ids = ", ".join(key.partition(":")[2][:8] for key in runs[:4])
            raise UserError(f"{len(runs)} runs are called that", where=name, hint=f"give one's id: {ids}")
        if keys := [*map(self._run, runs), *self._files(name, url)]:
            return keys
        if storage.is_local_folder(url):
            raise UserError("a folder, and no checkpoint or dataset", where=name, hint="give a file of text in it")
        raise UserError("nothing is known of it here", where=name, hint=f"give {_NAMES}")

    def _by_id(self, name: str) -> list[str]:
        """Things whose id it is, or begins with it; a training stands for its run, a step's folder for a checkpoint."""
        if len(name) < _SHORTEST:
            return []
        keys = [f"{RUN}:{identity}" for identity in self._runs if identity.startswith(name)]
        keys += [f"{RUN}:{identity}" for training, identity in self._run_of.items() if training.startswith(name)]
        keys = [self._run(key) for key in dict.fromkeys(keys)]
        return keys + [self._dataset(each) for each in self._all_datasets() if folder_name(each).startswith(name)]

    def _files(self, name: str, url: str) -> Iterator[str]:
        """Sources of datasets: those with the content of this file, or with this path where there is no such file."""
        digest = _digest(url)
        for place in self._all_datasets():
            dataset = self._open(place)
            for (corpus, path, sha256, _), shard in dataset.sources().items() if dataset else ():
                if digest == sha256 or (not digest and name in (path, f"{corpus}:{path}")):
                    yield self._source(corpus, path, sha256, self._shard(place, shard))

    # --- what belongs to what

    def parents(self, key: str) -> list[str]:
        kind, _, identity = key.partition(":")
        if kind == VERSION:
            return [self._checkpoint(self._checkpoint_of[key])]
        if kind == CHECKPOINT:
            run = self._run_of.get(_training_of(identity))
            origin = self._origin(self.nodes[key].place)
            return [self._run(f"{RUN}:{run}")] if run else [self._checkpoint(origin)] if origin else []
        if kind == RUN:
            tags = self._runs[identity].data.tags
            places = [tags[name] for name in (DATASET_TAG, SINCE_TAG) if name in tags]
            return [*map(self._dataset, places), *([self._checkpoint(tags[INIT_TAG])] if INIT_TAG in tags else [])]
        return self._contents(key) if kind in (DATASET, SHARD) else []

    def _contents(self, key: str) -> list[str]:
        """The shards of a dataset, or the sources of a shard."""
        kind, _, identity = key.partition(":")
        shard = identity.partition("/")[2]
        dataset = self._open(self.nodes[key].place)
        if dataset is None:
            return []
        if kind == DATASET:
            return [self._shard(dataset.url, each) for each in dict.fromkeys(file.hash for file in dataset.index())]
        return [self._source(corpus, path, sha256, key) for corpus, path, sha256 in self._sources(dataset)[shard]]

    def children(self, key: str) -> list[str]:
        kind, _, identity = key.partition(":")
        if kind == SOURCE:
            return self._shards_of[key]
        if kind == SHARD:
            return [self._dataset(self.nodes[key].place)]
        if kind == DATASET:
            return [self._run(f"{RUN}:{each}") for each, run in self._runs.items() if identity in _datasets(run)]
        if kind == RUN:
            run = self._runs[identity]
            training = run.data.tags[TRAINING_TAG]
            places = {each.url for each in list_checkpoints(training)} | {run.data.tags.get(CHECKPOINT_TAG, "")} - {""}
            own = (url for url in self._checkpoint_of.values() if _training_of(_short(url)) == folder_name(training))
            return list(dict.fromkeys(map(self._checkpoint, [*sorted(places), *own])))
        if kind == CHECKPOINT:
            return [*self._versions.get(identity, []), *self._begun_from(identity)]
        return self._begun_from(_short(self._checkpoint_of[key]))

    def _begun_from(self, identity: str) -> list[str]:
        """Trainings that started from a checkpoint, and the copies of it that others started from."""
        starts = {each: run.data.tags[INIT_TAG] for each, run in self._runs.items() if INIT_TAG in run.data.tags}
        copies = [url for url in dict.fromkeys(starts.values()) if _short(self._origin(url)) == identity]
        begun = [f"{RUN}:{each}" for each, url in starts.items() if _short(url) == identity]
        return [*map(self._checkpoint, copies), *map(self._run, begun)]

    # --- nodes

    def _version(self, version: Any) -> str:
        key = f"{VERSION}:{version.name}/{version.version}"
        if key not in self.nodes:
            names = ", ".join(self._aliases.get((version.name, str(version.version)), []))
            page = self._tracking.version_page(version.name, version.version)
            reason = version.tags.get(DECISION_TAG, "")
            facts = {name: text for name, text in (("alias", names), ("decision", reason)) if text}
            self.nodes[key] = Node(VERSION, f"{MODELS}{version.name}/{version.version}", page, facts)
        return key

    def _checkpoint(self, url: str) -> str:
        key = f"{CHECKPOINT}:{_short(url)}"
        if key not in self.nodes:
            origin = self._origin(url)
            facts = {"imported from": _short(origin)} if origin else {}
            facts |= {"unreadable": self._unreadable[url]} if url in self._unreadable else {}
            self.nodes[key] = Node(CHECKPOINT, _short(url), url, facts)
        return key

    def _run(self, key: str) -> str:
        if key not in self.nodes:
            run = self._runs[key.partition(":")[2]]
            started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M")
            facts = {"id": run.info.run_id, "started": started, "status": str(run.info.status).lower()}
            if DECIDING in run.data.metrics:
                facts["cross-entropy"] = f"{run.data.metrics[DECIDING]:.4f}"
            url = RunLink(self._tracking, run.info.run_id, run.info.experiment_id).url
            self.nodes[key] = Node(RUN, str(run.info.run_name), url, facts)
        return key

    def _dataset(self, url: str) -> str:
        key = f"{DATASET}:{folder_name(url)}"
        if key not in self.nodes:
            dataset = self._open(url)
            facts = {"unreadable": self._unreadable[url]} if url in self._unreadable else {"removed": "yes"}
            if dataset is not None:
                facts = {"corpora": "+".join(dataset.manifest["corpora"])}
                facts |= {what: f"{dataset.total(what):,}" for what in ("documents", "tokens", "shards")}
            self.nodes[key] = Node(DATASET, folder_name(url), url, facts)
        return key

    def _shard(self, dataset: str, shard: str) -> str:
        key = f"{SHARD}:{folder_name(dataset)}/{shard}"
        self.nodes.setdefault(key, Node(SHARD, shard, dataset))
        return key

    def _source(self, corpus: str, path: str, sha256: str, shard: str) -> str:
        key = f"{SOURCE}:{corpus}:{path}:{sha256[:16]}"
        self.nodes.setdefault(key, Node(SOURCE, f"{corpus}:{path}", facts={"sha256": sha256}))
        shards = self._shards_of.setdefault(key, [])
        if shard not in shards:
            shards.append(shard)
        return key

    # --- what is opened once

    def _origin(self, url: str) -> str:
        """What imported weights were made from; empty where it is not that, or not there any more."""
        if url not in self._origins:
            origin = ""
            try:
                checkpoint = open_checkpoint(url)
                if checkpoint and STATE in checkpoint.manifest["files"]:
                    origin = str(checkpoint.json(STATE).get("imported_from", ""))
            except UserError as error:  # a damaged one keeps nobody from seeing the rest
                self._unreadable[url] = str(error)
                log.warning("lineage: %s", error)
            training, _, step = origin.partition("/")
            known = self._run_of.get(training)
            self._origins[url] = storage.join(self._runs[known].data.tags[TRAINING_TAG], step) if known else origin
        return self._origins[url]

    def _sources(self, dataset: Dataset) -> dict[str, list[tuple[str, str, str]]]:
        """(corpus, path, SHA-256) of the sources of a dataset by the shard that holds them."""
        if dataset.id not in self._by_shard:
            groups: dict[str, list[tuple[str, str, str]]] = {file.hash: [] for file in dataset.index()}
            for (corpus, path, sha256, _), shard in dataset.sources().items():
                groups.setdefault(shard, []).append((corpus, path, sha256))
            self._by_shard[dataset.id] = groups
        return self._by_shard[dataset.id]

    def _all_datasets(self) -> list[str]:
        return list(self._places.values())

    @cached_property
    def _places(self) -> dict[str, str]:
        """URLs of datasets by their ids: those of the store, and those that runs name elsewhere."""
        folder = storage.join(self._store, "datasets")
        places = {name: storage.join(folder, name) for name in storage.list_folders(folder)}
        for run in self._runs.values():
            for url in (run.data.tags.get(name, "") for name in (DATASET_TAG, SINCE_TAG)):
                if url:
                    places.setdefault(folder_name(url), url)
        return {name: url for name, url in places.items() if self._open(url) is not None}

    def _open(self, url: str) -> Dataset | None:
        """The dataset there; None where it was removed or never finished, or, with a warning, cannot be read."""
        if url not in self._datasets:
            self._datasets[url] = None
            if storage.exists(storage.join(url, MANIFEST)):
                try:
                    self._datasets[url] = open_dataset(url)
                except UserError as error:  # a damaged one keeps nobody from seeing the rest
                    self._unreadable[url] = str(error)
                    log.warning("lineage: %s", error)
        return self._datasets[url]


def _datasets(run: Run) -> set[str]:
    return {folder_name(run.data.tags.get(name, "")) for name in (DATASET_TAG, SINCE_TAG)}


def _short(url: str) -> str:
    """A checkpoint by its training's folder and its own: whatever address it is reached by, it is the same."""
    return "/".join(url.rstrip("/").split("/")[-2:])


def _training_of(short: str) -> str:
    return short.partition("/")[0]


def _digest(url: str) -> str:
    """SHA-256 of a file; empty where there is none."""
    if storage.is_local_folder(url):
        return ""
    state = hashlib.sha256()
    try:
        with storage.open_read(url) as file:
            while block := file.read(_BLOCK):
                state.update(block)
    except FileNotFoundError:
        return ""
    return state.hexdigest()
