"""What of a dataset that is there is damaged: named and removed, to be made again of the sources."""

from __future__ import annotations

import json
import logging

from gptpipe import storage
from gptpipe.corpus.fingerprints import Fingerprints, State, hash_file
from gptpipe.corpus.plan import DatasetPlan
from gptpipe.dataset.dataset import MANIFEST, Dataset, open_dataset
from gptpipe.errors import Damaged

log = logging.getLogger(__name__)


def whole_dataset(planned: DatasetPlan, known: Fingerprints) -> Dataset | None:
    """The dataset of a plan, where it is there and no file of it is damaged; those that are, are removed.

    Args:
        known: hashes of files that have not changed since, which are not read again.
    """
    manifest = storage.join(planned.url, MANIFEST)
    if not storage.exists(manifest):
        return None
    try:
        dataset = open_dataset(planned.url)
        dataset.check_records()
        of_plan = [planned.id, planned.tokenizer, planned.options]
        if [dataset.id, dataset.tokenizer, dataset.options] != json.loads(json.dumps(of_plan)):
            raise Damaged("damaged: it is not what this dataset was made with", where=manifest)
        return None if _remove_damaged(dataset, known) else dataset
    except Damaged as error:  # its own records
        log.warning("%s: %s, made again", error.where, error.message)
        storage.remove(manifest)
        return None


def shard_states(dataset: Dataset) -> dict[str, tuple[State, str]]:
    """By path, what the storage says of each shard file that is there, and the SHA-256 its index gives it."""
    listed = {entry.path: entry for entry in storage.list_files(dataset.url)}
    index = dataset.index()
    return {
        path: ((entry.url, entry.size, entry.version), sha256)
        for path, size, sha256 in zip(index.paths(), index.sizes, index.digests(), strict=True)
        if (entry := listed.get(path)) is not None and entry.size == size
    }


def _remove_damaged(dataset: Dataset, known: Fingerprints) -> int:
    """Name and remove the shard files that are not what the index says; those that did not change are not read."""
    states = shard_states(dataset)
    hashed = dict(zip(states, known.of([state for state, _ in states.values()], hash_file), strict=True))
    damaged = [path for path in dataset.index().paths() if path not in states or hashed[path] != states[path][1]]
    for path in damaged:
        url = storage.join(dataset.url, path)
        log.warning("%s: %s, made again", url, "damaged" if path in states else "gone or cut off")
        storage.remove(url)
    return len(damaged)
