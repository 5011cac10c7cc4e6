"""Registered versions that may go: not among the newest of their model, with no alias, held by nobody.

What a version of gptpipe's leaves behind stays in MLflow: its run with curves, samples and report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptpipe.tracking.client import Tracking
from gptpipe.tracking.moves import MOVE_TAG, WAITS_TAG
from gptpipe.tracking.references import all_versions, is_kept, is_tagged_keep
from gptpipe.tracking.registry import MODELS, SCORE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class OldVersion:
    """A version that may go. `registered`: when, in seconds since 1970."""

    name: str
    number: str
    registered: float

    @property
    def uri(self) -> str:
        return f"{MODELS}{self.name}/{self.number}"


def old_versions(tracking: Tracking, keep: int, before: float) -> list[OldVersion]:
    """Those beyond the newest `keep` of each model that were registered before that second, the oldest first.

    A version with an alias stays, so the champion and what a rollback goes back to; also one that waits for approval,
    one that is tagged `keep`, or whose run is; one that gptpipe did not register; all of a model whose alias is moving.

    Raises:
        UserError: MLflow does not answer.
    """
    with tracking.reached() as client:
        versions = sorted(all_versions(client), key=lambda each: int(each.version))
        found = []
        for name in sorted({each.name for each in versions}):
            older = [each for each in versions if each.name == name][:-keep]
            held = _held(client, name) if older else None
            for each in older:
                registered = each.creation_timestamp / 1000
                if held is not None and registered < before and _is_free(client, each, held):
                    found.append(OldVersion(name, str(each.version), registered))
        return found


def remove_version(tracking: Tracking, uri: str) -> bool:
    """Delete a version that `old_versions` told of; False where it has got an alias or a tag since, or is gone."""
    from mlflow.exceptions import MlflowException

    name, _, number = uri.removeprefix(MODELS).rpartition("/")
    with tracking.moving(name) as client:
        try:
            held, version = _held(client, name), client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if held is None or not _is_free(client, version, held):
            return False
        client.delete_model_version(name, number)
        return True


def _held(client: MlflowClient, name: str) -> set[str] | None:
    """Numbers of the versions that have an alias; None while one of them moves."""
    model = client.get_registered_model(name)
    return None if MOVE_TAG in model.tags else {str(number) for number in model.aliases.values()}


def _is_free(client: MlflowClient, version: Any, held: set[str]) -> bool:
    from mlflow.exceptions import MlflowException

    if str(version.version) in held or SCORE_TAG not in version.tags:
        return False
    if WAITS_TAG in version.tags or is_tagged_keep(version.tags):
        return False
    try:
        return not (version.run_id and is_kept(client.get_run(version.run_id)))
    except MlflowException as error:  # a person removed the run
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
