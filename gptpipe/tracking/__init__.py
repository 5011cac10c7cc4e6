"""MLflow. It follows the metrics file that rank 0 writes, so training neither waits for MLflow nor needs it.

One run a training, found again by its tag after a stop; each step is logged once. Checkpoints are logged by
URL: large files go to object storage directly and never through the tracking server.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import shlex
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from gptpipe import storage
from gptpipe.config import PipelineConfig, flatten
from gptpipe.config.names import texts, training_name
from gptpipe.config.settings import make_home, settings
from gptpipe.corpus.sources import corpus_names
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.rows import SPLITS
from gptpipe.errors import Preempted, UserError
from gptpipe.evaluation.evaluate import Evaluation, evaluate_against
from gptpipe.generation.degenerate import degenerate_share, fault_of
from gptpipe.generation.generate import Samples
from gptpipe.launch import training as launch
from gptpipe.launch.gang import Hosts
from gptpipe.launch.job import METRICS, Job
from gptpipe.launch.torchrun import Cancelled, Watchers
from gptpipe.launch.training import TrainResult
from gptpipe.model.gpt import empty_model
from gptpipe.progress import Progress
from gptpipe.tracking.plots import loss_curve
from gptpipe.tracking.promote import ALREADY, NO_CHAMPION, Decision, decide, not_comparable
from gptpipe.tracking.summary import training_summary
from gptpipe.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

EVALUATION_PAGE = "evaluation.html"
TRAINING_TAG = "gptpipe.training"
PARAMETERS_TAG = "parameters"
# MLflow's charts and tables are in the order of the alphabet, by group: what decides comes first
DECIDING = "cross_entropy/evaluation"
_FLUSH_SECONDS = 30.0  # how long the end of a training waits for a slow server
_RETRY_SECONDS = 5.0
_DESCRIPTION = "mlflow.note.content"
_DECISION = "gptpipe.decision"  # of a version
_POINTS_A_CALL = 1000  # MLflow's limit for one batch of metrics
_MODELS = "models:/"
# MLflow 3 opens an experiment without this in its view for agents, where no curve is drawn
_VIEW = "workflowType=machine_learning"
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


def connect() -> MlflowClient:
    """A client of the tracking server or database; `import mlflow` happens here, at first use."""
    from mlflow import MlflowClient

    uri = settings().tracking_uri
    if uri.startswith("sqlite:"):
        if not settings().mlflow_uri:
            make_home()
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        for name in ("alembic", "mlflow.store.db.utils"):  # its database migrations, a line each
            logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient) -> str:
    """The experiment that runs go to, made when it is not there.

    Raises:
        UserError: a person has deleted it.
    """
    from mlflow.exceptions import MlflowException

    name = settings().experiment
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        address = f"MLFLOW_TRACKING_URI={shlex.quote(settings().tracking_uri)} "
        restore = f"{address}mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(
            "this MLflow experiment was deleted",
            where=f"GPTPIPE_EXPERIMENT={name}",
            hint=f"bring it back with `{restore}`, or name another one",
        )
    if found is not None:
        return str(found.experiment_id)
    root = settings().artifact_root
    try:
        place = storage.as_uri(root) if root else None
        return str(client.create_experiment(name, artifact_location=place, tags=_MODEL_TRAINING))
    except MlflowException:  # another run made it at the same moment
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def check_tracking(config: PipelineConfig) -> None:
    """Look, before a training, whether it can be tracked and its model registered.

    Raises:
        UserError: MLflow would refuse it. A server that cannot be reached now is waited for later.
    """
    _check_registry(config)
    try:
        experiment_id(connect())
    except Exception as error:
        if not _is_away(error):
            raise _in_a_line(error) from None
        log.warning("MLflow at %s cannot be reached yet (%s)", settings().tracking_uri, _first_line(error))


def _is_away(error: BaseException) -> bool:
    """Whether this says that the server, or the database, cannot be reached or is not itself now."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        return status >= 500 or error.error_code == "REQUEST_LIMIT_EXCEEDED"
    if isinstance(error, SQLAlchemyError):
        return "locked" in str(error)
    return isinstance(error, (RequestException, ConnectionError, TimeoutError))


def _in_a_line(error: Exception) -> Exception:
    """What MLflow refused, in one line for the user; any other error is a fault of ours and stays as it is."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
        return error
    hint = "`gptpipe doctor` tries the server; what is trained is found again"
    return UserError(f"MLflow refused: {_first_line(error)}", where=settings().tracking_uri, hint=hint)


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "message", "") or error or type(error).__name__).strip().splitlines()[0][:300]


def _check_registry(config: PipelineConfig) -> None:
    here = settings()
    if config.promote.register_model and here.tracking_uri.startswith("http") and storage.is_local(here.storage_url):
        raise UserError(
            "a tracking server registers no model from a local folder",
            where=f"GPTPIPE_STORAGE={here.storage_url}",
            hint="set GPTPIPE_STORAGE to an s3:// URL, or promote.register_model=false",
        )


def _web() -> str:
    """Where MLflow's pages are; those of `mlflow ui` where there is no server."""
    uri = settings().mlflow_ui or settings().tracking_uri
    return uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


@dataclass(frozen=True)
class RunLink:
    """Where a run is looked at."""

    run_id: str
    experiment_id: str

    @property
    def url(self) -> str:
        """Its page, where a server shows it; the path of the page below `mlflow ui` otherwise."""
        return f"{_web()}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{_VIEW}"

    @property
    def how_to_open(self) -> str:
        uri = settings().tracking_uri
        if uri.startswith("http"):
            return self.url
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}   then open {self.url}"

    def artifact_url(self, name: str) -> str:
        """The page that shows one of its artifacts."""
        return f"{self.url.split('?')[0]}/artifacts/{name}?{_VIEW}"

    @property
    def compare_url(self) -> str:
        """The page that shows the experiment's runs side by side."""
        return self.url.split("/runs/")[0] + f"/runs?compareRunsMode=CHART&{_VIEW}"


class TrainingTracker:
    """Follows one training into one MLflow run, from a thread of its own.

    Lines wait in memory while the server cannot be reached; what it never took is still in metrics.jsonl and is
    logged when the training is started or looked at again. Any other error ends a training that has made no step yet;
    one that has goes on, and the error is raised at its end.
    """

    def __init__(
        self,
        config: PipelineConfig,
        dataset: Dataset,
        tags: dict[str, str],
        on_link: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config, self._dataset, self._tags, self._on_link = config, dataset, tags, on_link
        self._lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._warned = False
        self._error: Exception | None = None
        self._has_begun = False
        self._training = ""
        self._run: Run | None = None
        self._logged_step = -1
        self._client: MlflowClient | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self, training: str) -> None:
        """Begin to follow the training in this folder."""
        self._training = training
        if not self.started:  # a gang has several attempts
            self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Lines of metrics.jsonl; never waits.

        Raises:
            UserError: MLflow refused the run. Another exception is a fault of ours. Both only before the first lines.
        """
        if self._error is not None and not self._has_begun:
            raise self._error
        self._has_begun = True
        with self._lock:
            self._lines += lines
        self._wake.set()

    def finish(self, status: str) -> RunLink | None:
        """Log what is left and set the run's status. None when the server could not be reached within the time.

        Raises:
            UserError: MLflow refused something. Another exception is a fault of ours.
        """
        self._ending = True
        self._wake.set()
        self._thread.join(_FLUSH_SECONDS)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive() or self._run is None or self._client is None:
            log.warning("MLflow at %s does not answer: the metrics are kept in %s", settings().tracking_uri, METRICS)
            return None
        try:
            self._client.set_terminated(self._run.info.run_id, status=status)
        except Exception as error:
            if not _is_away(error):
                raise _in_a_line(error) from None
            log.warning("MLflow did not take the run's end (%s)", _first_line(error))
        return RunLink(self._run.info.run_id, self._run.info.experiment_id)

    def _work(self) -> None:
        while True:
            ending = self._ending  # before the lines are taken: what is added later is taken in another round
            try:
                if self._run is None:
                    self._open()
                self._log_lines()
                if ending:
                    return
            except Exception as error:
                if not _is_away(error):
                    self._error = _in_a_line(error)
                    log.warning("the training is not tracked: %s", _first_line(self._error))
                    return
                if not self._warned:  # a server that is away must not end a training
                    log.warning("MLflow cannot be reached (%s); training goes on", _first_line(error))
                    self._warned = True
                if ending:
                    return
                time.sleep(_RETRY_SECONDS)
                continue
            self._wake.wait(_RETRY_SECONDS)
            self._wake.clear()

    def _open(self) -> None:
        self._client = self._client or connect()
        self._run = find_run(self._client, self._training)
        if self._run is None:
            self._run = self._client.create_run(
                experiment_id(self._client), run_name=self._name(), tags={TRAINING_TAG: self._training}
            )
        run_id = self._run.info.run_id
        self._client.update_run(run_id, status="RUNNING")
        self._on_link(RunLink(run_id, self._run.info.experiment_id).url)
        self._log_facts(self._client, self._run)
        history = self._client.get_metric_history(run_id, "train/loss")
        self._logged_step = max((point.step for point in history), default=-1)

    def _name(self) -> str:
        """The texts are named as the configuration has them where the dataset was made of those."""
        corpora = list(self._dataset.manifest["corpora"])
        given = self._config.data.corpus
        data = texts(given) if sorted(corpus_names(given)) == sorted(corpora) else "+".join(corpora)
        return training_name(self._config, data, self._training.rstrip("/").rpartition("/")[2])

    def _log_facts(self, client: MlflowClient, run: Run) -> None:
        """Parameters, tags and the dataset, once."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag, Param, RunTag

        values = {key: str(value) for key, value in flatten(self._config).items() if key not in run.data.params}
        tags = {
            "gptpipe.dataset": self._dataset.id,
            "gptpipe.dataset_url": self._dataset.url,
            "gptpipe.version": __version__,
            "preset": self._config.preset,
            PARAMETERS_TAG: str(empty_model(self._config.model).count_parameters()),
            "trigger": "command line",
            "mlflow.user": _user(),
            **git_tags(),
            **self._tags,
        }
        client.log_batch(
            run.info.run_id,
            params=[Param(key, value[:6000]) for key, value in values.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if not run.inputs or not run.inputs.dataset_inputs:
            with warnings.catch_warnings():  # a local folder has two equal readings, which it reports
                warnings.simplefilter("ignore")
                source = resolve_dataset_source(storage.as_uri(self._dataset.url))
            corpora = "+".join(self._dataset.manifest["corpora"])
            entity = MetaDataset(source, name=corpora, digest=self._dataset.id)._to_mlflow_entity()  # type: ignore[abstract]
            entity._profile = json.dumps(profile(self._dataset))  # MetaDataset takes none
            inputs = [DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])]
            client.log_inputs(run.info.run_id, datasets=inputs)

    def _log_lines(self) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        assert self._run is not None
        with self._lock:
            lines = [line for line in self._lines if line["step"] > self._logged_step]
        now = int(time.time() * 1000)
        points = [
            (line["step"], Metric("train/tokens" if key == "tokens" else key, float(value), now, line["step"]))
            for line in lines
            for key, value in line.items()
            if key != "step"
        ]
        while points:
            batch, points = points[:_POINTS_A_CALL], points[_POINTS_A_CALL:]
            while points and points[0][0] == batch[-1][0] and len(batch) > 1:  # a step is logged whole
                points.insert(0, batch.pop())
            self._client.log_batch(self._run.info.run_id, metrics=[metric for _, metric in batch])
            self._logged_step = batch[-1][0]
        with self._lock:
            self._lines = [line for line in self._lines if line["step"] > self._logged_step]


def find_run(client: MlflowClient, training: str) -> Run | None:
    """The run of the training in this folder, or None."""
    # a filter knows no quotation mark within quotation marks: `_` stands for any character, and the rest is seen here
    pattern = training.replace("'", "_").replace("\\", "_")
    same = f"tags.`{TRAINING_TAG}` {'=' if pattern == training else 'LIKE'} '{pattern}'"
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id(client)], same, max_results=100, page_token=token)
        for run in page:
            if run.data.tags[TRAINING_TAG] == training:
                return run
        if not (token := page.token):
            return None


def profile(dataset: Dataset) -> dict[str, Any]:
    """How large a dataset is, whole and by split, and its tokenizer: MLflow shows it with the run's dataset."""
    found: dict[str, Any] = {"tokenizer": dataset.tokenizer["name"]}
    for split in SPLITS:
        found |= {f"{split}_{what}": dataset.total(what, split) for what in ("documents", "tokens", "bytes")}
    return found


def _user() -> str:
    """Who runs this process; its number where the machine has no name for it, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def git_tags() -> dict[str, str]:
    """The commit of the working directory, where it is a git checkout, or else of the one that gptpipe runs from."""
    for folder in (Path.cwd(), Path(__file__).parent):
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        with suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            return {"mlflow.source.git.commit": commit}
    return {}


def train_and_track(
    config: PipelineConfig,
    *,
    data: str,
    out: str,
    init: str = "",
    resume: bool = True,
    tags: dict[str, str] | None = None,
    watchers: Watchers | None = None,
    hosts: Hosts | None = None,
    on_link: Callable[[str], None] = lambda _: None,
) -> tuple[TrainResult, RunLink | None]:
    """`launch.train`, followed into an MLflow run. The run ends as KILLED or FAILED when training does.

    Args:
        on_link: called, from a thread of the tracker's own, with the address of the run's page once there is one.
    """
    tracker = TrainingTracker(config, open_dataset(data), tags or {}, on_link)
    steps_tokens = config.train.batch_size * config.model.context_length
    progress = Progress(config.train.steps, steps_tokens)
    given = watchers or Watchers()

    def started(job: Job) -> None:
        tracker.start(job.training)
        given.on_start(job)

    def metrics(lines: list[dict[str, Any]]) -> None:
        tracker.add(lines)
        progress(lines)
        given.on_metrics(lines)

    following = replace(given, on_start=started, on_metrics=metrics)
    link = None
    try:
        result = launch.train(
            config.model,
            config.train,
            data=data,
            out=out,
            init=init,
            resume=resume,
            force=config.force,
            watchers=following,
            hosts=hosts,
        )
    except BaseException as stopped:
        if tracker.started:
            with suppress(Exception):  # the first reason is the one to tell
                tracker.finish("KILLED" if isinstance(stopped, (Preempted, Cancelled)) else "FAILED")
        raise
    if result.already_done:
        tracker.start(result.training)
        tracker.add(read_metrics(result.training))
    if tracker.started:
        link = tracker.finish("FINISHED")
    return result, link


def read_metrics(training: str) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl."""
    try:
        content = storage.read_bytes(storage.join(training, METRICS))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines() if line.strip()]


@contextmanager
def _reaching_mlflow() -> Iterator[None]:
    """A server that does not answer, or refuses, is the user's to mend: one line instead of a client's traceback."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_away(error):
            raise _in_a_line(error) from error
        raise UserError(
            f"MLflow cannot be reached: {_first_line(error)}",
            where=settings().tracking_uri,
            hint="`gptpipe doctor` tries the server; what is trained is found again",
        ) from error


def log_results(
    link: RunLink,
    result: TrainResult,
    evaluation: Evaluation,
    samples: list[Samples],
) -> bytes:
    """Log the evaluation and its page, the samples, the loss picture, where the checkpoint is. Returns the picture.

    The evaluation has no step: MLflow draws a bar a run for such numbers, and points in a void for others.

    Args:
        samples: of each checkpoint, by step; a table each.
    """
    from mlflow.entities import Metric, RunTag

    picture = loss_curve(
        read_metrics(result.training), unigram=evaluation.unigram, title=evaluation.sentence.split(":")[0]
    )
    values = {
        DECIDING: evaluation.cross_entropy,
        "evaluation/perplexity": evaluation.perplexity,
        "evaluation/bits_per_byte": evaluation.bits_per_byte,
        "cross_entropy/unigram": evaluation.unigram,
        "evaluation/accuracy": evaluation.accuracy,
        "evaluation/calibration_error": evaluation.calibration_error,
    }
    if evaluation.word_perplexity is not None:
        values["evaluation/word_perplexity"] = evaluation.word_perplexity
    values |= {f"evaluation/{task.task}": task.accuracy for task in evaluation.tasks}
    if evaluation.interval is not None:
        values["cross_entropy/standard_error"] = evaluation.interval.standard_error
    if (before := evaluation.against) is not None:
        values["evaluation/before/cross_entropy"] = before.evaluation.cross_entropy
        values["evaluation/before/difference"] = before.comparison.difference
        values["evaluation/before/documents_won"] = before.comparison.won
    best = next(each for each in samples if each.weights == result.best_checkpoint)
    if best.python_lines is not None:
        values["samples/python_lines"] = best.python_lines
    if (degenerate := degenerate_share(best.samples)) is not None:
        values["samples/degenerate"] = degenerate
    now = int(time.time() * 1000)
    with _reaching_mlflow(), tempfile.TemporaryDirectory(prefix="gptpipe-") as folder:
        client = connect()
        run = client.get_run(link.run_id)
        new = {key: value for key, value in values.items() if run.data.metrics.get(key) != value}
        client.log_batch(
            link.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in new.items()],
            tags=[
                RunTag("gptpipe.checkpoint", result.best_checkpoint),
                RunTag("scored_on", evaluation.scored),
            ],
        )
        (Path(folder) / "loss.png").write_bytes(picture)
        client.log_artifact(link.run_id, str(Path(folder) / "loss.png"))
        if evaluation.page:
            (Path(folder) / EVALUATION_PAGE).write_bytes(storage.read_bytes(evaluation.page))
            client.log_artifact(link.run_id, str(Path(folder) / EVALUATION_PAGE))
        there = {item.path for item in client.list_artifacts(link.run_id, "samples")}
        for each in samples:
            name = f"samples/step-{each.step:08d}.json"
            if name not in there:  # log_table appends
                table = {
                    "step": [each.step] * len(each.samples),
                    "prompt": [s.prompt for s in each.samples],
                    "continuation": [s.continuation for s in each.samples],
                    "fault": [fault_of(s) for s in each.samples],
                }
                client.log_table(link.run_id, table, name)
    return picture


@dataclass(frozen=True)
class Registered:
    """A model's version in the registry, and whether it became champion."""

    name: str
    version: str
    decision: Decision

    @property
    def uri(self) -> str:
        return f"{_MODELS}{self.name}/{self.version}"

    @property
    def url(self) -> str:
        """Its page in MLflow's registry."""
        return f"{_web()}/#/models/{self.name}/versions/{self.version}"


def describe(
    config: PipelineConfig,
    link: RunLink,
    result: TrainResult,
    evaluation: Evaluation,
    samples: Samples,
    registered: Registered | None,
) -> str:
    """Give the run, and the registered version, a table of what the training came to; returns it as Markdown.

    A version that is the champion already keeps the table that says how it became so.
    """
    decision = registered.decision if registered else None
    links = {
        "run": link.url,
        "the loss in the text, token by token": link.artifact_url(EVALUATION_PAGE),
        "all runs side by side": link.compare_url,
    }
    with _reaching_mlflow():
        client = connect()
        tags = client.get_run(link.run_id).data.tags
        if registered and decision == ALREADY:
            if _DESCRIPTION in tags:
                return str(tags[_DESCRIPTION])
            # it was stopped between the decision and this: the reason stands on the version
            version = client.get_model_version(registered.name, registered.version)
            decision = replace(ALREADY, reason=version.tags.get(_DECISION, ALREADY.reason))
        text = training_summary(
            config,
            open_dataset(result.dataset),
            result,
            evaluation,
            samples,
            read_metrics(result.training),
            decision,
            parameters=int(tags[PARAMETERS_TAG]),
            links=links,
        )
        client.set_tag(link.run_id, _DESCRIPTION, text)
        if registered and decision:
            client.set_tag(link.run_id, "decision", decision.reason)
            client.update_model_version(registered.name, registered.version, text)
    return text


def register(
    config: PipelineConfig, link: RunLink, result: TrainResult, evaluation: Evaluation, *, out: str
) -> Registered:
    """Register the checkpoint as a model version, once, and move the alias to it if it is surely better.

    The champion is scored again on the text that this model was scored on: last month's number was of another text.

    Args:
        out: folder where evaluations are kept.
    """
    promote = config.promote
    with _reaching_mlflow():
        client = connect()
        source = storage.as_uri(result.best_checkpoint)
        _make_registered_model(client, promote.model_name)
        versions = client.search_model_versions(f"run_id = '{link.run_id}'")
        version = next((v for v in versions if v.name == promote.model_name and v.source == source), None)
        if version is None:
            tags = {
                "gptpipe.cross_entropy": repr(evaluation.cross_entropy),
                "gptpipe.scored": evaluation.scored,
            }
            version = client.create_model_version(
                promote.model_name, source, run_id=link.run_id, tags=tags, description=evaluation.sentence
            )
        champion = _champion(client, promote.model_name, promote.alias)
    if champion is not None and champion.version == version.version:
        return Registered(promote.model_name, str(version.version), ALREADY)
    decision = NO_CHAMPION if champion is None else _against(champion, config, result, out)
    with _reaching_mlflow():
        if decision.promote:
            client.set_registered_model_alias(promote.model_name, promote.alias, version.version)
        client.set_model_version_tag(promote.model_name, version.version, _DECISION, decision.reason)
    return Registered(promote.model_name, str(version.version), decision)


def _against(champion: Any, config: PipelineConfig, result: TrainResult, out: str) -> Decision:
    """The decision between the champion and a new model, on the text that the new one was scored on."""
    data = config.evaluate.data or result.dataset
    log.info("register: version %s, the %s, is scored on the same text", champion.version, config.promote.alias)
    try:
        found = evaluate_against(
            result.best_checkpoint, _location(champion.source), data=data, config=config.evaluate, out=out
        )
    except UserError as error:
        return not_comparable(f"version {champion.version}, the champion, could not be scored on this text: {error}")
    assert found.against is not None
    return decide(found.against.comparison)


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


def _champion(client: MlflowClient, name: str, alias: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _location(source: Any) -> str:
    """The folder or URL that a version was registered with as a URI."""
    text = str(source)
    return unquote(urlsplit(text).path) if text.startswith("file:") else text


def resolve_weights(weights: str, config: PipelineConfig | None = None) -> str:
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION` and `champion` as the checkpoint's URL; others as they are.

    Raises:
        UserError: no such model, version or alias.
    """
    promote = (config or PipelineConfig()).promote
    if weights == "champion":
        weights = f"{_MODELS}{promote.model_name}@{promote.alias}"
    if not weights.startswith(_MODELS):
        return weights
    from mlflow.exceptions import MlflowException

    name, slash, number = weights.removeprefix(_MODELS).partition("/")  # no name holds one, but it may hold @
    try:
        if slash:
            version = connect().get_model_version(name, number)
        else:
            name, _, alias = name.rpartition("@")
            version = connect().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise UserError(
            error.message, where=weights, hint="give models:/NAME@ALIAS or models:/NAME/VERSION of a registered model"
        ) from None
    return _location(version.source)
