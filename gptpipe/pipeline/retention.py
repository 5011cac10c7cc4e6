"""What may be removed: old versions, trainings and datasets that nothing refers to, and what killed processes left.

Kept is what a registered version, a run that is tagged `keep`, or a run that goes on refers to, with its dataset; the
dataset that was made last; and all that is younger than the age that was asked for. Registered versions go only where
a number of them that stays is asked for.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gptpipe import storage
from gptpipe.dataset.dataset import LATEST, MANIFEST
from gptpipe.errors import Damaged
from gptpipe.launch.job import JOB, OUTCOME
from gptpipe.processes import is_running
from gptpipe.storage.lease import Held, Lease, is_held
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.old_versions import old_versions, remove_version
from gptpipe.tracking.references import References, folder_name, registered_trainings
from gptpipe.weights.checkpoint import STATE, newest_checkpoint

KINDS = ("version", "training", "dataset", "result", "upload", "leftover")
RESULTS = ("evaluations", "samples")  # folders of what was measured once, which is measured again where it is missing
_RESULT = re.compile(r"(overlap-)?[0-9a-f]{32}")
_MADE = re.compile(r"/(trainings|datasets)/([0-9a-f]{32}(?:-\d+)?)(?:/|$)")  # below a store
_ID = re.compile(r"[0-9a-f]{32}(-\d+)?")  # of a dataset, of a training and its further attempts
_DAY = 86400.0


@dataclass(frozen=True)
class Removal:
    """Something that may go.

    Attributes:
        kind: one of `KINDS`. place: URL or path, of a version its address in MLflow. bytes: what it takes; 0 where
            not known.
        reason: why it may go. age: days since anything in it was written.
    """

    kind: str
    place: str
    bytes: int
    reason: str
    age: float
    upload: storage.Upload | None = None

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["upload"]
        return values


def removals(
    store: str,
    tracking: Tracking,
    days: float,
    now: float | None = None,
    *,
    keep_versions: int | None = None,
    kinds: Container[str] = KINDS,
) -> list[Removal]:
    """All that may be removed, of these kinds.

    Of trainings only those that a run of this MLflow tells of: what another one registered is not known here.

    Args:
        store: folder or URL of everything that is made. days: what is younger stays. now: seconds since 1970.
        keep_versions: of each registered model this many stay, and those that `old_versions` names; None is all.

    Raises:
        UserError: MLflow or the store does not answer: then nothing is known to be free of use.
    """
    now, store = time.time() if now is None else now, storage.normalize(store)
    versions = list(_versions(tracking, keep_versions, days, now))
    used = References.of(tracking, {each.place for each in versions})
    trainings = list(_trainings(store, used, days, now))
    gone = {folder_name(each.place) for each in trainings} if "training" in kinds else set[str]()
    datasets = list(_datasets(store, used, gone, days, now))
    gone_data = {folder_name(each.place) for each in datasets} if "dataset" in kinds else set[str]()
    everything = [
        *versions,
        *trainings,
        *datasets,
        *(_results(store, gone, gone_data, days, now) if "result" in kinds else ()),
        *_uploads(store, days, now),
        *_leftovers(days, now),
    ]
    return [each for each in everything if each.kind in kinds]


def clean(store: str, tracking: Tracking, days: float, keep_versions: int | None = None) -> list[Removal]:
    """Remove all that may be removed; what is gone.

    Versions first, then trainings, datasets, results: what those that stay by now need stays too.
    """
    now = time.time()
    gone = [each for each in _versions(tracking, keep_versions, days, now) if remove(each, tracking)]
    for kinds in (("training",), ("dataset", "upload", "leftover")):
        gone += [each for each in removals(store, tracking, days, kinds=kinds) if remove(each, tracking)]
    results = _results(storage.normalize(store), set(), set(), days, now)
    return gone + [each for each in results if remove(each, tracking)]


def remove(removal: Removal, tracking: Tracking) -> bool:
    """Remove it; False where somebody uses it by now. Whatever says that something is whole goes first."""
    if removal.upload is not None:
        storage.abort_upload(removal.upload)
        return True
    if removal.kind == "version":
        return remove_version(tracking, removal.place)
    if removal.kind == "result":
        for ending in (".json", ".parquet", ".html"):
            storage.remove(removal.place.removesuffix(".json") + ending)
        return True
    if removal.kind == "leftover":
        shutil.rmtree(removal.place, ignore_errors=True)
        return True
    try:
        if removal.kind == "training":
            with Lease(removal.place):
                if folder_name(removal.place) in registered_trainings(tracking):  # since it was listed
                    return False
                _remove_tree(removal.place)
        else:
            _remove_tree(removal.place)
    except Held:
        return False
    return True


def _remove_tree(url: str) -> None:
    for entry in storage.list_files(url):
        if entry.path.rpartition("/")[2] in (MANIFEST, OUTCOME):
            storage.remove(entry.url)
    with suppress(FileNotFoundError):
        storage.remove_tree(url)


def _versions(tracking: Tracking, keep: int | None, days: float, now: float) -> Iterator[Removal]:
    if keep is None:
        return
    for each in old_versions(tracking, keep, now - days * _DAY):
        reason = f"no alias, not among the newest {keep}"
        yield Removal("version", each.uri, 0, reason, (now - each.registered) / _DAY)


def _trainings(store: str, used: References, days: float, now: float) -> Iterator[Removal]:
    place = storage.join(store, "trainings")
    for name in filter(_ID.fullmatch, storage.list_folders(place)):  # other folders there are a person's
        url = storage.join(place, name)
        size, age = _size_and_age(url, now)
        if name in used.dataset_of and name not in used.trainings and age >= days and not is_held(url):
            yield Removal("training", url, size, "no registered version, no kept run", age)


def _datasets(store: str, used: References, gone: set[str], days: float, now: float) -> Iterator[Removal]:
    place = storage.join(store, "datasets")
    kept = set(used.datasets)
    trainings = storage.join(store, "trainings")
    for name in storage.list_folders(trainings):
        if name not in gone:
            kept.add(used.dataset_of.get(name) or _dataset_in(storage.join(trainings, name)))
            kept |= used.more.get(name, set())
    with suppress(FileNotFoundError):
        kept.add(str(storage.read_json(storage.join(place, LATEST)).get("id", "")))
    for name in filter(_ID.fullmatch, storage.list_folders(place)):
        url = storage.join(place, name)
        size, age = _size_and_age(url, now)
        if name in kept or age < days:
            continue
        whole = storage.exists(storage.join(url, MANIFEST))
        yield Removal("dataset", url, size, "no training that stays" if whole else "never finished", age)


def _results(store: str, gone: set[str], gone_data: set[str], days: float, now: float) -> Iterator[Removal]:
    """Evaluations and samples of a training, or a dataset, that is in this store no more, and measured overlaps."""

    @cache
    def is_there(kind: str, name: str) -> bool:  # an object store may list the folder of files that were removed
        stays = name not in (gone if kind == "trainings" else gone_data)
        return stays and bool(storage.list_files(storage.join(store, kind, name)))

    for folder in RESULTS:
        parts: dict[str, list[storage.Entry]] = {}
        for entry in storage.list_files(storage.join(store, folder)):
            if _RESULT.fullmatch(entry.path.partition(".")[0]):  # other files there are a person's
                parts.setdefault(entry.url.rpartition(".")[0], []).append(entry)
        for name, files in parts.items():
            age = (now - max(file.modified for file in files)) / _DAY
            if age >= days and (reason := _unused(f"{name}.json", store, age, is_there)):
                yield Removal("result", f"{name}.json", sum(file.size for file in files), reason, age)


def _unused(result: str, store: str, age: float, is_there: Callable[[str, str], bool]) -> str:
    """Why nobody needs a result any more; empty where somebody may.

    Args:
        is_there: whether a training or a dataset, by its folder's kind and name, stays in the store.
    """
    if folder_name(result).startswith("overlap-"):
        return "measured again where it is needed"
    try:
        told = storage.read_json(result)
    except FileNotFoundError:
        return "never finished" if age >= 1 else ""
    except Damaged:
        return "damaged"
    for key in ("weights", "data"):
        url = str(told.get(key, ""))
        made = _MADE.match(url.removeprefix(store)) if url.startswith(store) else None
        if made and not is_there(made[1], made[2]):
            return f"of a {made[1].removesuffix('s')} that is gone"
    return ""


def _dataset_in(training: str) -> str:
    """The id of the dataset that a training's newest checkpoint names."""
    newest = newest_checkpoint(training)
    return str(newest.json(STATE).get("dataset", "")) if newest else ""


def _size_and_age(url: str, now: float) -> tuple[int, float]:
    """Bytes, and days since the newest file was written, half-written ones too; where nothing is, somebody begins."""
    files = storage.list_files(url)
    newest = max((entry.modified for entry in files), default=now)
    if storage.is_local(url):
        try:
            newest = max([newest, *(path.stat().st_mtime for path in storage.local_path(url).rglob("*"))])
        except OSError:  # a file went while they were looked at: somebody is at work
            newest = now
    return sum(entry.size for entry in files), (now - newest) / _DAY


def _uploads(store: str, days: float, now: float) -> Iterator[Removal]:
    if not store.startswith("s3://"):
        return
    for upload in storage.unfinished_uploads(store):
        age = (now - upload.begun) / _DAY
        if age >= max(1.0, days):  # an upload that goes on may take hours
            yield Removal("upload", upload.url, 0, "its upload never ended", age, upload)


def _leftovers(days: float, now: float) -> Iterator[Removal]:
    """Folders of this machine: of jobs and measurements that were killed, of torchrun, and trainings done once more."""
    places = [*_folders(storage.jobs_home()), *_folders(storage.reproductions_home())]
    places += [path for path in Path(tempfile.gettempdir()).glob("torchelastic_*") if path.is_dir()]
    for path in places:
        with suppress(OSError):
            files = [file for file in path.rglob("*") if file.is_file()]
            newest = max((file.stat().st_mtime for file in files), default=path.stat().st_mtime)
            age = (now - newest) / _DAY
            if age < max(1.0, days) or _runs(path):
                continue
            size = sum(file.stat().st_size for file in files)
            yield Removal("leftover", str(path), size, "of a process that ended", age)


def _runs(folder: Path) -> bool:
    """Whether the launcher of the job in this folder lives."""
    try:
        return is_running(int(json.loads((folder / JOB).read_text("utf-8"))["launcher"]))
    except (OSError, ValueError, KeyError):
        return False


def _folders(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []
