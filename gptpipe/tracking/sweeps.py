"""A sweep's run in MLflow: the parent of its trainings' runs, with a table, a picture, importances, the best file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gptpipe import storage
from gptpipe.config.names import word
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import SweepResult
from gptpipe.sweep.study import Row
from gptpipe.tracking.client import RunLink, Tracking, is_away, reason
from gptpipe.tracking.follow import git_tags
from gptpipe.tracking.plots import parallel_coordinates
from gptpipe.tracking.results import DESCRIPTION

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its UI folds the runs below their parent
NAME_TAG = "mlflow.runName"
SWEEP_TAG = "gptpipe.sweep"  # of the parent: the sweep's name
TABLE_FILE, PICTURE_FILE, IMPORTANCES_FILE, BEST_FILE = (
    "trials.json",
    "parallel-coordinates.png",
    "importances.json",
    "best.yaml",
)
_SHOWN_TAG = "mlflow.loggedArtifacts"  # which files MLflow's UI shows as tables


class SweepRun:
    """The parent run of a sweep; the one there is when the sweep goes on.

    Attributes:
        link: where it is looked at.
    """

    def __init__(self, link: RunLink, plan: Plan) -> None:
        self.link, self._plan = link, plan
        self._logged = -1  # how many trainings had ended when they were logged last

    @classmethod
    def begin(cls, tracking: Tracking, plan: Plan, tags: Mapping[str, str]) -> SweepRun:
        """Find it by the sweep's name, or make it.

        Raises:
            UserError: MLflow does not answer, or refuses.
        """
        from mlflow.entities import Param, RunTag

        with tracking.reached() as client:
            experiment = tracking.experiment_id(client)
            named = f"tags.`{SWEEP_TAG}` = '{plan.name}'"
            run = next(iter(client.search_runs([experiment], named, max_results=1)), None)
            if run is None:
                run = client.create_run(experiment, run_name=f"sweep · {plan.name}", tags={SWEEP_TAG: plan.name})
            run_id = run.info.run_id
            client.update_run(run_id, status="RUNNING")
            tagged = {"preset": plan.base.preset, "sweep": plan.name, "method": plan.sweep.method, **git_tags(), **tags}
            parameters = {key: value for key, value in _parameters(plan).items() if key not in run.data.params}
            client.log_batch(
                run_id,
                params=[Param(key, value[:6000]) for key, value in parameters.items()],
                tags=[RunTag(key, value) for key, value in tagged.items()],
            )
            return cls(RunLink(tracking, run_id, experiment), plan)

    def child_tags(self, number: int, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Tags of the run of a training, by which it is found below this one, and its name: what was searched."""
        searched = " ".join(word(key, value) for key, value in parameters.items())
        return {
            PARENT_TAG: self.link.run_id,
            "sweep": self._plan.name,
            "trial": str(number),
            "pruned": "false",
            NAME_TAG: f"{searched} · trial {number} · {self._plan.name}",
        }

    def child_link(self, row: Row) -> str:
        """The page of a training's run; empty where it has none."""
        return RunLink(self.link.tracking, row.run_id, self.link.experiment_id).url if row.run_id else ""

    def mark_pruned(self, training: str) -> str:
        """Tag the run of a training that was stopped early; its id, or nothing where MLflow does not answer."""
        with self._unless_away("that a training was stopped early") as client:
            run = self.link.tracking.find_run(client, training)
            if run is not None:
                client.set_tag(run.info.run_id, "pruned", "true")
                return str(run.info.run_id)
        return ""

    def write(self, result: SweepResult) -> None:
        """Put the sweep's state into the run. A server that is away costs a warning: the study has all of it."""
        with self._unless_away("the table of the sweep") as client:
            self._write(client, result)

    def end(self, status: str) -> None:
        """Set the run's status: FINISHED, KILLED or FAILED."""
        with self._unless_away("the end of the sweep") as client:
            client.set_terminated(self.link.run_id, status=status)

    @contextmanager
    def _unless_away(self, what: str) -> Iterator[MlflowClient]:
        """A client. A server that is away costs a warning: the study knows all of it.

        Raises:
            UserError: MLflow refuses it.
        """
        try:
            yield self.link.tracking.connect()
        except Exception as error:
            if not is_away(error):
                raise self.link.tracking.refusal(error) from None
            log.warning("MLflow did not take %s (%s)", what, reason(error))

    def _write(self, client: MlflowClient, result: SweepResult) -> None:
        run_id = self.link.run_id
        files = {
            TABLE_FILE: json.dumps(_table(result, self.child_link)).encode(),
            IMPORTANCES_FILE: json.dumps(result.importances, indent=2).encode(),
            BEST_FILE: result.yaml.encode(),
            PICTURE_FILE: parallel_coordinates(result),
        }
        with storage.passing_folder() as folder:
            for name, content in files.items():
                if content:
                    (folder / name).write_bytes(content)
            client.log_artifacts(run_id, str(folder))
        client.set_tag(run_id, _SHOWN_TAG, json.dumps([{"path": TABLE_FILE, "type": "table"}]))
        picture = f"[The trainings side by side, as a picture](<{self.link.artifact_url(PICTURE_FILE)}>)"
        client.set_tag(run_id, DESCRIPTION, f"{result.markdown(self.child_link)}\n\n{picture}")
        self._log_progress(client, result)

    def _log_progress(self, client: MlflowClient, result: SweepResult) -> None:
        """The least loss so far, by the steps that all trainings have taken together."""
        steps = sum(row.steps for row in result.rows if row.state != "running")
        if self._logged < 0:
            history = client.get_metric_history(self.link.run_id, "sweep/steps")
            self._logged = max((point.step for point in history), default=0)
        if steps <= self._logged:
            return
        self._logged = steps
        client.log_metric(self.link.run_id, "sweep/steps", steps, step=steps)
        if (best := result.best) is not None and best.loss is not None:
            client.log_metric(self.link.run_id, "sweep/best_loss", best.loss, step=steps)


def _parameters(plan: Plan) -> dict[str, str]:
    settings = {f"sweep.{name}": str(value) for name, value in plan.sweep.model_dump().items() if name != "search"}
    return {**{each.key: each.text for each in plan.space}, **settings, "train.steps": str(plan.base.train.steps)}


def _table(result: SweepResult, link: Callable[[Row], str]) -> dict[str, list[Any]]:
    """In the form of MLflow's own tables."""
    keys = [dimension.key for dimension in result.plan.space]
    rows = [
        [row.number, *(row.parameters.get(key) for key in keys), row.loss, row.steps, row.state, row.reason, link(row)]
        for row in result.ranking
    ]
    return {"columns": ["trial", *keys, "loss", "steps", "state", "reason", "run"], "data": rows}
