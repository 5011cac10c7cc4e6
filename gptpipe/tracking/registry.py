"""The model registry: versions, which of them serves, and weights by their name there."""

from __future__ import annotations

import json
import logging
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter

from gptpipe import storage
from gptpipe.config import PipelineConfig, PromoteConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.evaluation.confidence import Comparison
from gptpipe.evaluation.copies import Copy, find_copies
from gptpipe.evaluation.once import evaluate_against
from gptpipe.evaluation.result import Evaluation
from gptpipe.generation.generate import Samples
from gptpipe.launch.training import TrainResult
from gptpipe.tracking.client import DATASET_TAG, RunLink, Tracking, is_away, reason
from gptpipe.tracking.moves import (
    CHALLENGER,
    DECISION_TAG,
    GATE,
    NOBODY,
    REFUSED_TAG,
    ROLLED_BACK_TAG,
    WAITS_TAG,
    Move,
    finish,
    number,
    version_called,
)
from gptpipe.tracking.promote import ALREADY, Check, Decision, decide, not_comparable
from gptpipe.weights.find import read_weights

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


# of a version
SCORE_TAG = "gptpipe.cross_entropy"
CHECKS_TAG, COMPARISON_TAG = "gptpipe.checks", "gptpipe.comparison"
COMPARED_TAG = "gptpipe.compared_with"  # the champion's number then
FRESHNESS_TAG = "gptpipe.freshness"
WAITS = "waits for a person's approval: "
_COMPARISON = TypeAdapter(Comparison)
_LONGEST_TAG = 5000  # characters that MLflow takes
MODELS = "models:/"


def check_tracking(config: PipelineConfig, tracking: Tracking, store: str) -> None:
    """Look, before a training, whether it can be tracked and its model registered.

    Args:
        store: folder or URL where checkpoints will be.

    Raises:
        UserError: MLflow would refuse it. A server that cannot be reached now is waited for later.
    """
    _check_registry(config, tracking, store)
    try:
        tracking.experiment_id(tracking.connect())
    except Exception as error:
        if not is_away(error):
            raise tracking.refusal(error) from None
        log.warning("MLflow at %s cannot be reached yet (%s)", tracking.place, reason(error))


def _check_registry(config: PipelineConfig, tracking: Tracking, store: str) -> None:
    if config.promote.register_model and tracking.is_server and storage.is_local(store):
        raise UserError(
            "a tracking server registers no model from a local folder",
            where=f"GPTPIPE_STORAGE={store}",
            hint="set GPTPIPE_STORAGE to an s3:// URL, or promote.register_model=false",
        )


@dataclass(frozen=True)
class Registered:
    """A model's version in the registry, and whether it became champion. `waits`: it would, if a person agrees."""

    tracking: Tracking
    name: str
    version: str
    decision: Decision
    waits: bool = False

    @property
    def uri(self) -> str:
        return f"{MODELS}{self.name}/{self.version}"

    @property
    def url(self) -> str:
        """Its page in MLflow's registry."""
        return self.tracking.version_page(self.name, self.version)


def register(
    config: PipelineConfig,
    link: RunLink,
    result: TrainResult,
    evaluation: Evaluation,
    samples: Samples,
    *,
    new: Container[str] | None = None,
    out: str,
    cache: TokenCache | None = None,
) -> Registered:
    """Register the checkpoint as a model version, once, and move the alias to it if it is surely better.

    Where `promote.approval_hours` asks for a person, a better version waits, and `tracking.approval` has the answer.

    The champion is scored again on the text that this model was scored on: last month's number was of another text.
    The samples are looked up in the training text.

    Args:
        samples: of the checkpoint.
        new: names of the documents that are new since the champion's dataset: the decision then tells them apart.
        out: folder where evaluations are kept. cache: where decoded tokens are.
    """
    promote = config.promote
    tracking = link.tracking
    with tracking.moving(promote.model_name) as client:
        source = storage.as_uri(result.best_checkpoint)
        _make_registered_model(client, promote.model_name)
        versions = client.search_model_versions(f"run_id = '{link.run_id}'")
        version = next((v for v in versions if v.name == promote.model_name and v.source == source), None)
        if version is None:
            tags = {
                SCORE_TAG: repr(evaluation.cross_entropy),
                "gptpipe.scored": evaluation.scored,
            }
            version = client.create_model_version(
                promote.model_name, source, run_id=link.run_id, tags=tags, description=evaluation.sentence
            )
        finished = finish(client, promote)
        champion = version_called(client, promote.model_name, promote.alias)
        if finished and finished.after == number(version) == number(champion):
            version = client.get_model_version(promote.model_name, version.version)
            decided = replace(decision_of(version), comparison=comparison_of(version))
            return Registered(tracking, promote.model_name, str(version.version), decided)
    if champion is not None and champion.version == version.version:
        return Registered(tracking, promote.model_name, str(version.version), ALREADY)
    if said := _said_by_a_person(version, promote.alias):
        return Registered(tracking, promote.model_name, str(version.version), said)
    cache = cache or TokenCache()
    copies = _copies(samples, result.dataset, promote.max_copied, cache)
    while True:
        decision = _decision(champion, config, result, samples, copies, new, out, cache)
        waits = decision.promote and promote.approval_hours > 0
        if waits:
            decision = decision.settled(False, f"{WAITS}{decision.reason}")
        with tracking.moving(promote.model_name) as client:
            now = version_called(client, promote.model_name, promote.alias)
            version = client.get_model_version(promote.model_name, version.version)
            if said := _said_by_a_person(version, promote.alias):  # while it was scored
                return Registered(tracking, promote.model_name, str(version.version), said)
            if number(now) == number(champion):
                _move(client, promote, number(version), champion, decision)
                if waits:
                    compared = number(champion) or NOBODY
                    client.set_model_version_tag(promote.model_name, version.version, WAITS_TAG, compared)
                elif WAITS_TAG in version.tags:  # it was compared with another champion then
                    client.delete_model_version_tag(promote.model_name, version.version, WAITS_TAG)
                break
        # another retraining ended meanwhile: the new champion is the one to beat
        log.info("register: version %s is the %s by now", number(now), promote.alias)
        champion = now
    return Registered(tracking, promote.model_name, str(version.version), decision, waits)


def _said_by_a_person(version: Any, alias: str) -> Decision | None:
    """What a person decided of a version, which the gate decides no more; None where nobody has."""
    number = version.version
    if ROLLED_BACK_TAG in version.tags:
        return Decision(False, f"a person rolled it back; `gptpipe rollback --to {number}` makes it {alias} again")
    if REFUSED_TAG in version.tags:
        return Decision(False, f"a person refused it; `gptpipe approve {number}` makes it {alias} after all")
    return None


def _move(client: MlflowClient, promote: PromoteConfig, version: str, champion: Any, decision: Decision) -> None:
    """Do as was decided: the new champion, and who was it before; or else the challenger.

    What the decision rests on is written first: once the alias has moved, nothing is decided again.
    """
    name = promote.model_name
    if champion is not None:
        client.set_model_version_tag(name, version, COMPARED_TAG, str(champion.version))
    if decision.comparison is not None:
        client.set_model_version_tag(name, version, COMPARISON_TAG, json.dumps(asdict(decision.comparison)))
    kept = json.dumps([asdict(check) for check in decision.checks])
    client.set_model_version_tag(name, version, CHECKS_TAG, kept if len(kept) <= _LONGEST_TAG else "[]")
    if decision.promote:
        Move(GATE, number(champion), version, decision.reason).make(client, promote)
    else:
        client.set_registered_model_alias(name, CHALLENGER, version)
        client.set_model_version_tag(name, version, DECISION_TAG, decision.reason)


def last_comparison(config: PipelineConfig, tracking: Tracking) -> Comparison | None:
    """The newest comparison of two versions of this model; None where there is none, or MLflow does not answer."""
    name = config.promote.model_name.replace("'", "_")
    try:
        with tracking.reached() as client:
            versions = client.search_model_versions(f"name LIKE '{name}'", 20, ["version_number DESC"])
    except UserError:
        return None
    for version in versions:
        if version.name == config.promote.model_name and (comparison := comparison_of(version)):
            return comparison
    return None


def comparison_of(version: Any) -> Comparison | None:
    """How a version compared with the champion when it was registered; None where there was none."""
    kept = version.tags.get(COMPARISON_TAG)
    return _COMPARISON.validate_json(kept) if kept else None


def decision_of(version: Any) -> Decision:
    """What was decided of a version when it was registered, as its tags tell it."""
    checks = tuple(Check(**each) for each in json.loads(version.tags.get(CHECKS_TAG, "[]")))
    return Decision(True, version.tags.get(DECISION_TAG, ALREADY.reason), checks)


def _copies(samples: Samples, data: str, most: int, cache: TokenCache) -> list[Copy]:
    """What of the samples stands in the training text, over that many tokens; 0 does not look."""
    if not most:
        return []
    dataset = open_dataset(data)
    return find_copies(samples.samples, TokenStream(dataset, "train", cache), dataset.load_tokenizer(), most + 1)


def _decision(
    champion: Any,
    config: PipelineConfig,
    result: TrainResult,
    samples: Samples,
    copies: list[Copy],
    new: Container[str] | None,
    out: str,
    cache: TokenCache,
) -> Decision:
    """The decision between the champion and a new model, on the text that the new one was scored on."""
    if champion is None:
        return decide(None, config.promote, samples=samples.samples, copies=copies)
    data = config.evaluate.data or result.dataset
    log.info("register: version %s, the %s, is scored on the same text", champion.version, config.promote.alias)
    try:
        evaluation = evaluate_against(
            result.best_checkpoint,
            checkpoint_of(champion),
            data=data,
            config=config.evaluate,
            out=out,
            cache=cache,
            new=None if config.evaluate.data else new,
        )
    except UserError as error:
        return not_comparable(f"version {champion.version}, the champion, could not be scored on this text: {error}")
    assert evaluation.against is not None
    against = evaluation.against
    decision = decide(
        against.comparison, config.promote, against.corpora, ages=against.ages, samples=samples.samples, copies=copies
    )
    mine, theirs = (read_weights(url).config.family for url in (result.best_checkpoint, checkpoint_of(champion)))
    if mine == theirs:
        return decision
    return replace(decision, reason=f"{decision.reason} (this is a {mine}, the champion is a {theirs})")


def _make_registered_model(client: MlflowClient, name: str) -> None:
    """Unless it is there: to make it a second time would be an error in the database's log, every night."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
        return
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    try:
        client.create_registered_model(name)
    except MlflowException as error:  # another run made it at the same moment
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def checkpoint_of(version: Any) -> str:
    """The folder or URL of a version's checkpoint, which was registered as a URI."""
    text = str(version.source)
    return unquote(urlsplit(text).path) if text.startswith("file:") else text


def keep_freshness(tracking: Tracking, name: str, version: str, sentence: str) -> None:
    """Write on a version how it does on text that came after it."""
    with tracking.reached() as client:
        client.set_model_version_tag(name, version, FRESHNESS_TAG, sentence)


@dataclass(frozen=True)
class Champion:
    """The version that serves, and what it was made from.

    Attributes:
        checkpoint: URL of its weights. dataset: URL of the dataset it was trained on; empty where that is not known.
        run_id: of its training; empty where it has none.
    """

    version: str
    checkpoint: str
    dataset: str
    run_id: str = ""


def champion(config: PipelineConfig, tracking: Tracking) -> Champion | None:
    """The champion of the model that this configuration trains; None where there is none yet."""
    from mlflow.exceptions import MlflowException

    with tracking.reached() as client:
        version = version_called(client, config.promote.model_name, config.promote.alias)
        if version is None:
            return None
        dataset = ""
        try:
            dataset = client.get_run(version.run_id).data.tags.get(DATASET_TAG, "") if version.run_id else ""
        except MlflowException as error:  # a person removed the run
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return Champion(str(version.version), checkpoint_of(version), dataset, version.run_id or "")


def starting_weights(config: PipelineConfig, tracking: Tracking) -> str:
    """The checkpoint or WEIGHTS that `config.init` names; empty for random weights, and where no champion is yet."""
    if config.init == "scratch":
        return ""
    if config.init == "champion":
        first = champion(config, tracking)
        return first.checkpoint if first else ""
    return resolve_weights(config.init, tracking, config)


def resolve_weights(weights: str, tracking: Tracking, config: PipelineConfig | None = None) -> str:
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION` and `champion` as the checkpoint's URL; others as they are.

    Args:
        config: whose model's champion is meant; by default the usual one's.

    Raises:
        UserError: no such model, version or alias.
    """
    if weights != "champion" and not weights.startswith(MODELS):
        return weights
    return checkpoint_of(find_version(weights, tracking, config))


def find_version(name: str, tracking: Tracking, config: PipelineConfig | None = None) -> Any:
    """The registered version that is called `champion`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Args:
        config: whose model's champion is meant; by default the usual one's.

    Raises:
        UserError: no such model, version or alias.
    """
    from mlflow.exceptions import MlflowException

    promote = (config or PipelineConfig()).promote
    address = f"{MODELS}{promote.model_name}@{promote.alias}" if name == "champion" else name
    model, slash, number = address.removeprefix(MODELS).partition("/")  # no name holds one, but it may hold @
    try:
        if slash:
            return tracking.connect().get_model_version(model, number)
        model, _, alias = model.rpartition("@")
        return tracking.connect().get_model_version_by_alias(model, alias)
    except MlflowException as error:
        raise UserError(
            error.message, where=address, hint="give models:/NAME@ALIAS or models:/NAME/VERSION of a registered model"
        ) from None
