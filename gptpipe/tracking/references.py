"""What MLflow refers to in the store: trainings and datasets of registered versions, kept runs, running runs, sweeps.

The trainings of a sweep that goes on, or is kept, are kept with it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptpipe import storage
from gptpipe.tracking.client import DATASET_TAG, TRAINING_TAG, Tracking
from gptpipe.tracking.follow import SINCE_TAG
from gptpipe.tracking.registry import MODELS, checkpoint_of
from gptpipe.tracking.sweeps import PARENT_TAG, SWEEP_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEEP_TAG = "keep"
_PAGE = 1000


@dataclass(frozen=True)
class References:
    """What must stay, by the names of folders, which are ids: whatever address a folder is reached by, it is the same.

    Attributes:
        trainings: of trainings. datasets: of the datasets that they, or runs that go on, were made of.
        dataset_of: the dataset of every training that a run tells of.
        more: other datasets that a training refers to: what it was scored on, what its first weights had seen.
    """

    trainings: set[str]
    datasets: set[str]
    dataset_of: dict[str, str]
    more: dict[str, set[str]]

    @classmethod
    def of(cls, tracking: Tracking, gone: Container[str] = ()) -> References:
        """As registered versions and all runs of all experiments tell it.

        Args:
            gone: addresses, `models:/NAME/VERSION`, of versions that refer to nothing any more.

        Raises:
            UserError: MLflow does not answer.
        """
        registered = registered_trainings(tracking, gone)
        with tracking.reached() as client:
            runs = all_runs(client)
        kept = {run.info.run_id for run in runs if is_kept(run)}
        sweeps = {run.info.run_id for run in runs if SWEEP_TAG in run.data.tags and run.info.run_id in kept}
        trainings, datasets, dataset_of = set(registered), set[str](), dict[str, str]()
        more: dict[str, set[str]] = {}
        for run in runs:
            tags = run.data.tags
            training, dataset = folder_name(tags.get(TRAINING_TAG, "")), folder_name(tags.get(DATASET_TAG, ""))
            if training and dataset:
                dataset_of[training] = dataset
            scored, seen = run.data.params.get("evaluate.data", "None"), tags.get(SINCE_TAG, "")
            more.setdefault(training, set()).update(
                folder_name(each) for each in (scored, seen) if each not in ("", "None")
            )
            if run.info.run_id in kept or tags.get(PARENT_TAG) in sweeps:
                trainings.add(training)
                datasets.add(dataset)
        datasets |= {dataset_of[each] for each in trainings if each in dataset_of}
        datasets |= {each for training in trainings for each in more.get(training, ())}
        return cls(trainings, datasets, dataset_of, more)


def registered_trainings(tracking: Tracking, gone: Container[str] = ()) -> set[str]:
    """Names of the folders of trainings whose weights are a version of a model, other than those that are gone."""
    with tracking.reached() as client:
        return {
            folder_name(storage.parent(checkpoint_of(version)))
            for version in all_versions(client)
            if f"{MODELS}{version.name}/{version.version}" not in gone
        }


def all_versions(client: MlflowClient) -> list[Any]:
    """Every version of every registered model."""
    return _pages(lambda token: client.search_model_versions(max_results=_PAGE, page_token=token))


def all_runs(client: MlflowClient) -> list[Run]:
    """Every run of every experiment."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    return runs_of(client, experiments) if experiments else []


def runs_of(client: MlflowClient, experiments: list[str], which: str = "") -> list[Run]:
    """Every run of some experiments that MLflow's filter lets through."""
    return _pages(lambda token: client.search_runs(experiments, which, max_results=_PAGE, page_token=token))


def _pages(page: Callable[[str | None], Any]) -> list[Any]:
    """All that a search has, page by page."""
    everything: list[Any] = []
    token: str | None = None
    while True:
        part = page(token)
        everything += part
        if not (token := part.token):
            return everything


def is_kept(run: Run) -> bool:
    """Whether a run goes on, or somebody wants it kept."""
    return run.info.status == "RUNNING" or is_tagged_keep(run.data.tags)


def is_tagged_keep(tags: Mapping[str, str]) -> bool:
    """Whether somebody said of a run or a version that it stays."""
    return tags.get(KEEP_TAG, "").lower() in ("true", "yes", "1")


def folder_name(url: str) -> str:
    """The last part of a URL: the id of what lies there."""
    return url.rstrip("/").rpartition("/")[2]
