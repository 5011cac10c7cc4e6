"""A training followed into its MLflow run, from a thread of its own.

It reads what rank 0 writes, so training neither waits for MLflow nor needs it. One run per training, found again by its
tag after a stop; each step is logged once.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import re
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gptpipe import storage
from gptpipe.config import PipelineConfig, flatten
from gptpipe.config.names import changes, texts, training_name
from gptpipe.corpus.sources import corpus_names
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.rows import SPLITS
from gptpipe.launch.job import METRICS
from gptpipe.model.gpt import empty_model
from gptpipe.tracking.client import DATASET_TAG, TRAINING_TAG, RunLink, Tracking, is_away, reason
from gptpipe.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)


PARAMETERS_TAG = "parameters"
CHANGED_TAG = "changed"  # what differs from the preset
END_TAG = "gptpipe.end"  # why its training ended before its last step
INIT_TAG, SINCE_TAG = "gptpipe.init", "gptpipe.since"  # of a run: what its training started from
# its artifacts: what `gptpipe reproduce` needs
CONFIG_FILE, ENVIRONMENT_FILE = "reproduce/config.yaml", "reproduce/environment.txt"
_FLUSH_SECONDS = 30.0  # how long the end of a training waits for a slow server
RETRY_SECONDS = 5.0
_LONGEST_TAG = 1000  # characters that the table of runs still shows
_TRIES, _AGAIN_SECONDS = 3, 0.5  # for the entry of a dataset
_POINTS_A_CALL = 1000  # MLflow's limit for one batch of metrics
_FIELD = re.compile(r"^(Name|Version): *(.*?)\s*$", re.MULTILINE)  # of a package's description


class TrainingTracker:
    """Follows one training into one MLflow run, from a thread of its own.

    Lines wait in memory while the server cannot be reached; what it never took is still in metrics.jsonl and is
    logged when the training is started or looked at again. Any other error ends a training that has made no step yet;
    one that has goes on, and the error is raised at its end.
    """

    def __init__(
        self,
        tracking: Tracking,
        config: PipelineConfig,
        dataset: Dataset,
        tags: dict[str, str],
        on_link: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._tracking = tracking
        self._config, self._dataset, self._tags, self._on_link = config, dataset, tags, on_link
        self._lines: list[tuple[int, dict[str, Any]]] = []  # with the milliseconds since 1970 at which each came
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._warned = False
        self._error: Exception | None = None
        self._has_begun = False
        self._training, self._is_done = "", False
        self._run: Run | None = None
        self._logged_step = -1
        self._client: MlflowClient | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self, training: str, *, is_done: bool = False) -> None:
        """Begin to follow the training in this folder.

        Args:
            is_done: whether it was finished before: its run stays what it was, but for what never arrived there.
        """
        self._training, self._is_done = training, is_done
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
            self._lines += [(int(time.time() * 1000), line) for line in lines]
        self._wake.set()

    def finish(self, status: str, why: str = "") -> RunLink | None:
        """Log what is left and set the run's status. None when the server could not be reached within the time.

        Args:
            why: the reason for a status other than FINISHED, kept with the run.

        Raises:
            UserError: MLflow refused something. Another exception is a fault of ours.
        """
        self._ending = True
        self._wake.set()
        self._thread.join(_FLUSH_SECONDS)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive() or self._run is None or self._client is None:
            log.warning("MLflow at %s does not answer: the metrics are kept in %s", self._tracking.place, METRICS)
            return None
        try:
            if not self._is_whole():
                if why:
                    self._client.set_tag(self._run.info.run_id, END_TAG, why[:_LONGEST_TAG])
                self._client.set_terminated(self._run.info.run_id, status=status)
        except Exception as error:
            if not is_away(error):
                raise self._tracking.refusal(error) from None
            log.warning("MLflow did not take the run's end (%s)", reason(error))
        return RunLink(self._tracking, self._run.info.run_id, self._run.info.experiment_id)

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
                if not is_away(error):
                    self._error = self._tracking.refusal(error)
                    log.warning("the training is not tracked: %s", reason(self._error))
                    return
                if not self._warned:  # a server that is away must not end a training
                    log.warning("MLflow cannot be reached (%s); training goes on", reason(error))
                    self._warned = True
                if ending:
                    return
                time.sleep(RETRY_SECONDS)
                continue
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()

    def _open(self) -> None:
        self._client = self._client or self._tracking.connect()
        self._run = self._tracking.find_run(self._client, self._training)
        if self._run is None:
            self._run = self._client.create_run(
                self._tracking.experiment_id(self._client), run_name=self._name(), tags={TRAINING_TAG: self._training}
            )
        run_id = self._run.info.run_id
        if not self._is_whole():
            self._client.update_run(run_id, status="RUNNING")
        self._on_link(RunLink(self._tracking, run_id, self._run.info.experiment_id).url)
        self._log_facts(self._client, self._run)
        history = self._client.get_metric_history(run_id, "train/tokens")  # of every line, also without a loss
        self._logged_step = max((point.step for point in history), default=-1)

    def _is_whole(self) -> bool:
        """Whether the run of a training that was finished before says so."""
        return self._is_done and self._run is not None and self._run.info.status == "FINISHED"

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
            DATASET_TAG: self._dataset.url,
            "gptpipe.version": __version__,
            "preset": self._config.preset,
            "dataset": f"{'+'.join(self._dataset.manifest['corpora'])} {self._dataset.id[:8]}",
            "init": self._config.init,
            CHANGED_TAG: ", ".join(f"{key}={value}" for key, value in changes(self._config).items())[:_LONGEST_TAG],
            "reproduce": f"gptpipe reproduce {run.info.run_id}",
            PARAMETERS_TAG: str(empty_model(self._config.model).count_parameters()),
            "trigger": "command line",
            "mlflow.user": _user(),
            **git_tags(),
            **self._tags,
        }
        client.log_batch(
            run.info.run_id,
            params=[Param(key, value[:6000]) for key, value in values.items()],
            tags=[RunTag(key, value) for key, value in tags.items() if not (self._is_done and key in run.data.tags)],
        )
        if CONFIG_FILE not in {item.path for item in client.list_artifacts(run.info.run_id, "reproduce")}:
            client.log_text(run.info.run_id, environment(), ENVIRONMENT_FILE)
            chosen = yaml.safe_dump(self._config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
            client.log_text(run.info.run_id, chosen, CONFIG_FILE)  # the last: with it both are there
        if not run.inputs or not run.inputs.dataset_inputs:
            with warnings.catch_warnings():  # a local folder has two equal readings, which it reports
                warnings.simplefilter("ignore")
                source = resolve_dataset_source(storage.as_uri(self._dataset.url))
            corpora = "+".join(self._dataset.manifest["corpora"])
            entity = MetaDataset(source, name=corpora, digest=self._dataset.id)._to_mlflow_entity()  # type: ignore[abstract]
            entity._profile = json.dumps(profile(self._dataset))  # MetaDataset takes none
            inputs = [DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])]
            _log_inputs(client, run.info.run_id, inputs)

    def _log_lines(self) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        assert self._run is not None
        with self._lock:
            lines = [each for each in self._lines if each[1]["step"] > self._logged_step]
        # MLflow takes the same point once, and it is the same only with the same time: an answer may be lost
        points = [
            (line["step"], Metric("train/tokens" if key == "tokens" else key, float(value), at, line["step"]))
            for at, line in lines
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
            self._lines = [each for each in self._lines if each[1]["step"] > self._logged_step]


def _log_inputs(client: MlflowClient, run_id: str, inputs: list[Any]) -> None:
    """MLflow makes an entry for a dataset that it does not know: of two runs that ask at once, one is refused."""
    from mlflow.exceptions import MlflowException

    for left in reversed(range(_TRIES)):
        try:
            client.log_inputs(run_id, datasets=inputs)
            return
        except MlflowException as error:
            if not left or is_away(error):
                raise
            log.debug("the dataset once more: %s", reason(error))
            time.sleep(_AGAIN_SECONDS)


def profile(dataset: Dataset) -> dict[str, Any]:
    """How large a dataset is, whole and by split, and its tokenizer: MLflow shows it with the run's dataset."""
    sizes: dict[str, Any] = {"tokenizer": dataset.tokenizer["name"]}
    for split in SPLITS:
        sizes |= {f"{split}_{what}": dataset.total(what, split) for what in ("documents", "tokens", "bytes")}
    return sizes


@cache
def environment() -> str:
    """Python and every installed package with its version, a line each, as pip reads them.

    Only the head of each description is read: where MLflow is imported, to parse them whole takes 30 times as long.
    """
    packages = set()
    for each in distributions():
        text = each.read_text("METADATA") or each.read_text("PKG-INFO") or ""
        fields = dict(reversed(_FIELD.findall(text.partition("\n\n")[0])))
        if "Name" in fields and "Version" in fields:
            packages.add(f"{fields['Name']}=={fields['Version']}")
    return "\n".join([f"# Python {platform.python_version()} on {platform.platform()}", *sorted(packages)]) + "\n"


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
            return {"mlflow.source.git.commit": commit, "commit": commit[:10]}
    return {}
