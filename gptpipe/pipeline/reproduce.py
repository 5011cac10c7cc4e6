"""A training done again from what its MLflow run says of it, and whether the numbers agree, and to which digit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptpipe import storage
from gptpipe.config import PipelineConfig, load_config
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.errors import UserError
from gptpipe.launch.job import OUTCOME, Outcome
from gptpipe.launch.training import check_start, train, training_id
from gptpipe.tracking.client import DATASET_TAG, TRAINING_TAG, Tracking
from gptpipe.tracking.comparison import find_run
from gptpipe.tracking.follow import CONFIG_FILE, ENVIRONMENT_FILE, INIT_TAG, SINCE_TAG, environment
from gptpipe.tracking.results import CHECKPOINT_TAG, read_metrics
from gptpipe.weights.checkpoint import open_checkpoint

_LOSSES = ("train/loss", "validation/loss")
_EXACT = 17  # digits of a float64


@dataclass(frozen=True)
class Reproduction:
    """How a second training compares with the first.

    Attributes:
        run_id: of the first. checkpoint: the second's best one.
        losses: how many were compared. digits: to which they agree, all of them; 17 is to the last bit.
        first_difference: step of the first that is another; None where there is none.
        same_weights: whether the best checkpoints hold the same bits; None where the first's is gone.
        changed: packages that have another version now, `name old → new`.
    """

    run_id: str
    checkpoint: str
    losses: int
    digits: int
    first_difference: int | None
    same_weights: bool | None
    changed: list[str]

    @property
    def sentence(self) -> str:
        """Whether the numbers agree."""
        weights = {True: ", and so are the weights", False: ", the weights are not", None: "; its weights are gone"}
        if self.first_difference is None:
            return f"all {self.losses:,} losses are the same to the last bit{weights[self.same_weights]}"
        digits = f"all {self.losses:,} losses agree to {self.digits} digits" if self.digits > 0 else "they do not agree"
        return f"the losses differ from step {self.first_difference:,} on: {digits}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def reproduce(name: str, tracking: Tracking, out: str, cache: TokenCache) -> Reproduction:
    """Train again what a run has trained, below `out`, and compare. Nothing is logged, the run stays as it is.

    Args:
        name: of the run, as `gptpipe compare` takes it.

    Raises:
        UserError: there is no such run, its dataset or the weights that it started from are gone, or the configuration
            that it keeps is damaged.
    """
    with tracking.reached() as client:
        run = find_run(client, tracking, name)
        tags = run.data.tags
        kept = {item.path for item in client.list_artifacts(run.info.run_id, CONFIG_FILE.partition("/")[0])}
        if DATASET_TAG not in tags or CONFIG_FILE not in kept:
            raise UserError("the run does not say how it was trained", where=name, hint="it was made before it did")
        with storage.passing_folder() as folder:
            file = Path(client.download_artifacts(run.info.run_id, CONFIG_FILE, str(folder)))
            config = _config_in(file, run.info.run_id)
            file = Path(client.download_artifacts(run.info.run_id, ENVIRONMENT_FILE, str(folder)))
            then = file.read_text("utf-8", "replace")
        history = {key: client.get_metric_history(run.info.run_id, key) for key in _LOSSES}
    dataset = open_dataset(tags[DATASET_TAG])
    _check_identity(config, dataset, tags, run.info.run_id)
    result = train(
        config.model,
        config.train,
        data=dataset.url,
        out=out,
        init=tags.get(INIT_TAG, ""),
        since=tags.get(SINCE_TAG, ""),
        cache=cache,
    )
    before = {(key, point.step): float(point.value) for key, points in history.items() for point in points}
    now = {
        (key, int(line["step"])): float(line[key])
        for line in read_metrics(result.training)
        for key in _LOSSES
        if key in line
    }
    both = sorted(before.keys() & now.keys(), key=lambda each: each[1])
    different = [key for key in both if before[key] != now[key]]
    return Reproduction(
        run_id=run.info.run_id,
        checkpoint=result.best_checkpoint,
        losses=len(both),
        digits=min((_digits(before[key], now[key]) for key in both), default=0),
        first_difference=different[0][1] if different else None,
        same_weights=_same_weights(_best_checkpoint(tags), result.best_checkpoint),
        changed=_changed(then, environment()),
    )


def _config_in(file: Path, run_id: str) -> PipelineConfig:
    try:
        return load_config(file=file)
    except UserError as error:
        raise UserError(
            f"its configuration cannot be read: {error.message}",
            where=f"{CONFIG_FILE} of run {run_id}",
            hint="bring the file back as it was",
        ) from None


def _check_identity(config: PipelineConfig, dataset: Dataset, tags: Mapping[str, str], run_id: str) -> None:
    """Hold the configuration that a run keeps against the id of its training, which is made of it."""
    init, since = tags.get(INIT_TAG, ""), tags.get(SINCE_TAG, "")
    start = check_start(init, config.model, dataset) if init else ""
    seen = open_dataset(since).id if since else ""
    name = tags[TRAINING_TAG].rstrip("/").rpartition("/")[2]
    if training_id(config.model, config.train, dataset.id, start, seen) != name.partition("-")[0]:
        raise UserError(
            f"its configuration is not that of training {name}: the file was changed, or this version trains otherwise",
            where=f"{CONFIG_FILE} of run {run_id}",
            hint=f"bring the file back as it was, or take the versions in {ENVIRONMENT_FILE}",
        )


def _digits(first: float, second: float) -> int:
    """Decimal digits in which two numbers agree."""
    if first == second:
        return _EXACT
    scale = max(abs(first), abs(second))
    return max(0, math.floor(-math.log10(abs(first - second) / scale)))


def _best_checkpoint(tags: Mapping[str, str]) -> str:
    """URL of the first training's best checkpoint; empty where that is not known any more."""
    if CHECKPOINT_TAG in tags:
        return tags[CHECKPOINT_TAG]
    training = tags.get(TRAINING_TAG, "")
    ended = Outcome.read(storage.join(training, OUTCOME)) if training else None
    return ended.best_checkpoint(training) if ended else ""


def _same_weights(first: str, second: str) -> bool | None:
    before, now = (open_checkpoint(url) if url else None for url in (first, second))
    return before.model_sha256 == now.model_sha256 if before and now else None


def _changed(then: str, now: str) -> list[str]:
    before, after = (dict(line.split("==", 1) for line in text.splitlines() if "==" in line) for text in (then, now))
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} {before.get(name, 'absent')} → {after.get(name, 'absent')}"
        for name in names
        if before.get(name) != after.get(name)
    ]
