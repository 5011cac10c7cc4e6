"""The champion's alias moves together with what is written beside it, also where whoever moves it is killed halfway."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gptpipe.config import PromoteConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER, PREVIOUS = "challenger", "previous"  # the newest that did not become champion; who was it before
MOVE_TAG = "gptpipe.move"  # of a registered model, while its champion changes
# of a version
DECISION_TAG, ROLLED_BACK_TAG = "gptpipe.decision", "gptpipe.rolled_back"
WAITS_TAG, REFUSED_TAG = "gptpipe.waits", "gptpipe.refused"  # the champion's number then, or NOBODY
ANNOUNCED_TAG = "gptpipe.announced"
NOBODY = "none"
GATE, APPROVAL, ROLLBACK = "gate", "approval", "rollback"


@dataclass(frozen=True)
class Move:
    """Another version becomes champion.

    Attributes:
        kind: who moves it. before: number of the version that is champion now; empty where none is.
        after: of the one that is to be. reason: of the decision.
    """

    kind: str
    before: str
    after: str
    reason: str

    def make(self, client: MlflowClient, promote: PromoteConfig) -> None:
        """Write it down, do it, and forget it: killed anywhere, it was not begun, or `finish` ends it."""
        client.set_registered_model_tag(promote.model_name, MOVE_TAG, json.dumps(asdict(self)))
        self._do(client, promote)

    def _do(self, client: MlflowClient, promote: PromoteConfig) -> None:
        """Each step may be done twice."""
        name = promote.model_name
        if self.before:
            client.set_registered_model_alias(name, PREVIOUS, self.before)
        client.set_registered_model_alias(name, promote.alias, self.after)
        if number(version_called(client, name, CHALLENGER)) == self.after:
            client.delete_registered_model_alias(name, CHALLENGER)
        if self.kind == ROLLBACK:
            client.set_model_version_tag(name, self.before, ROLLED_BACK_TAG, f"to version {self.after}")
        client.set_model_version_tag(name, self.after, DECISION_TAG, self.reason)
        version = client.get_model_version(name, self.after)
        if self.kind == APPROVAL:
            begin_description(client, version, self.reason)
        # after a rollback it is told once more that it is champion
        for tag in (ROLLED_BACK_TAG, WAITS_TAG, REFUSED_TAG, *([ANNOUNCED_TAG] if self.kind == ROLLBACK else [])):
            if tag in version.tags:
                client.delete_model_version_tag(name, self.after, tag)
        client.delete_registered_model_tag(name, MOVE_TAG)


def finish(client: MlflowClient, promote: PromoteConfig) -> Move | None:
    """End the move that somebody began and was killed in; None where there is none, or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        begun = client.get_registered_model(promote.model_name).tags.get(MOVE_TAG)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if begun is None:
        return None
    move = Move(**json.loads(begun))
    move._do(client, promote)
    return move


def begin_description(client: MlflowClient, version: Any, sentence: str) -> None:
    """Put a sentence before a version's description, once."""
    description = version.description or ""
    if not description.startswith(sentence):
        client.update_model_version(version.name, version.version, f"{sentence}\n\n{description}")


def version_called(client: MlflowClient, name: str, alias: str) -> Any:
    """The version that has an alias; None where none has."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def number(version: Any) -> str:
    """As text; empty for None."""
    return str(version.version) if version is not None else ""


def champion_number(client: MlflowClient, promote: PromoteConfig) -> str:
    """Number of the version that is champion; empty where none is."""
    return number(version_called(client, promote.model_name, promote.alias))
