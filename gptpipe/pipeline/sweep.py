"""A sweep's trainings, side by side: real ones, each with a run of its own below the sweep's, stopped early where the
study says so, and gone on with where a process was killed.
"""

from __future__ import annotations

import contextvars
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gptpipe import storage
from gptpipe.config import PipelineConfig, TrainConfig
from gptpipe.cores import usable_cores
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import Preempted, UserError
from gptpipe.launch.job import OUTCOME, Job, Outcome
from gptpipe.launch.signals import StopSignals
from gptpipe.launch.torchrun import Cancelled, Watchers
from gptpipe.launch.training import TrainingFailed, TrainResult, check_devices
from gptpipe.model.precision import pick_device
from gptpipe.pipeline.speed import speed_tags
from gptpipe.storage.lease import Lease
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import TRAINED, SweepResult
from gptpipe.sweep.study import Study, Trial
from gptpipe.tracking.client import RunLink, Tracking
from gptpipe.tracking.results import read_metrics
from gptpipe.tracking.sweeps import SweepRun
from gptpipe.tracking.training import train_and_track
from gptpipe.weights.adapt import starting_from
from gptpipe.weights.checkpoint import newest_checkpoint
from gptpipe.wording import counted

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_MOST_FAILURES = 3  # in a row, where no training has come to anything: then it is not the values
_PRUNED = "waits at a rung of its sweep"


@dataclass(frozen=True)
class Slot:
    """What a training has of this machine while others go on beside it.

    Attributes:
        variables: of its ranks' environment: the GPUs that they see.
        threads: of each rank; 0 shares out all cores.
    """

    variables: dict[str, str] = field(default_factory=dict)
    threads: int = 0


def slots(config: TrainConfig, parallel: int, cuda: int | None = None) -> list[Slot]:
    """As many as trainings go on at once: GPUs of their own for each, or a share of the cores.

    Args:
        parallel: how many; 0 is as many as there are GPUs for, and 1 on a CPU.
        cuda: how many GPUs torch sees; None asks it.

    Raises:
        UserError: there are fewer GPUs than that many trainings need.
    """
    if cuda is None:
        import torch

        check_devices(config)
        cuda = torch.cuda.device_count() if pick_device(config.device) == "cuda" else 0
    if not cuda:
        count = parallel or 1
        threads = max(1, usable_cores() // (count * config.nproc)) if count > 1 else 0
        return [Slot(threads=config.threads or threads)] * count
    most = cuda // config.nproc
    count = parallel or max(1, most)
    if count > most:
        raise UserError(
            f"{counted(count, 'training')} at once of {counted(config.nproc, 'rank')} each; torch sees "
            f"{counted(cuda, 'GPU')}",
            where=f"sweep.parallel={parallel}",
            hint=f"set it to {most}" if most else "lower train.nproc",
        )
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible or [str(number) for number in range(cuda)]
    shares = [names[number * config.nproc : (number + 1) * config.nproc] for number in range(count)]
    return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(share)}, config.threads) for share in shares]


@dataclass(frozen=True)
class Places:
    """Where a sweep reads and writes.

    Attributes:
        data: URL of the dataset. init: checkpoint that all trainings start from; empty is random weights.
        store: folder or URL for everything that is made. database: of the study, as SQLAlchemy names it.
    """

    data: str
    init: str
    store: str
    database: str
    tracking: Tracking
    cache: TokenCache


@dataclass(frozen=True)
class Stops:
    """How a sweep is told to end.

    Attributes:
        was_cancelled: whether it is known to have been cancelled; answers at once.
        is_cancelling: whether a signal means that it was cancelled; may take a moment.
    """

    was_cancelled: Callable[[], bool] = lambda: False
    is_cancelling: Callable[[], bool] = lambda: False


def sweep(
    plan: Plan, places: Places, *, tags: Mapping[str, str] | None = None, stops: Stops | None = None
) -> tuple[SweepResult, RunLink]:
    """Train all that the plan asks for and is not done yet; what it came to, and its run in MLflow.

    Raises:
        UserError: it cannot be made, another process works on it, or all trainings fail.
        Preempted: stopped early with everything saved: the same again goes on.
        Cancelled: stopped without saving; finished trainings stand.
    """
    dataset = open_dataset(places.data)
    if not dataset.total("tokens", "validation"):
        raise UserError(
            "nothing is kept for validation, and trainings are compared there",
            where="data.validation",
            hint="keep some, 0.1 say",
        )
    if places.database == places.tracking.uri:
        raise UserError(
            "Optuna and MLflow cannot share a database: both keep a table alembic_version",
            where="GPTPIPE_SWEEPS_URI",
            hint="name another database of the same server",
        )
    plan = plan.on(dataset.id, places.init)
    with Lease(storage.join(places.store, "sweeps", plan.name)):
        study = Study(plan, places.database)
        run = SweepRun.begin(places.tracking, plan, tags or {})
        log.info("sweep: %s, %s; %s", plan.name, counted(plan.trials, "training"), _how(plan))
        if plan.caution:
            log.warning("sweep: %s", plan.caution)
        status = "FAILED"
        try:
            _Children(plan, places, study, run, tags or {}, stops or Stops()).work()
            status = "FINISHED"
        except (Preempted, Cancelled):
            status = "KILLED"
            raise
        finally:
            run.end(status)
        return _result(plan, study), run.link


def _how(plan: Plan) -> str:
    if not plan.first_rung:
        return plan.sweep.method
    return (
        f"asha: validated, saved and judged every {counted(plan.first_rung, 'step')} in place of train.validate_every "
        "and train.checkpoint_every"
    )


def _result(plan: Plan, study: Study) -> SweepResult:
    return SweepResult(plan, study.rows(), study.importances())


class _Child:
    """One training, in a thread of its own.

    Attributes:
        config: its own; None until it is known that its values go together.
        training: URL of its folder, once it has begun.
    """

    def __init__(self, trial: Trial, slot: Slot) -> None:
        self.trial, self.slot = trial, slot
        self.config: PipelineConfig | None = None
        self.training = ""
        self._lines: dict[int, dict[str, Any]] = {}

    def started(self, job: Job) -> None:
        self.training = job.training

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Lines of metrics.jsonl; their validation losses are judged. One that is no number is left out of a line."""
        for line in lines:
            self._lines[line["step"]] = line
            if "validation/loss" in line:
                self.trial.report(line["step"], float(line["validation/loss"]))
            elif "train/loss" not in line:
                self.trial.report(line["step"], math.nan)

    def refuses_values(self) -> bool:
        """Whether it failed by its values: they do not go together, or its ranks could not train with them."""
        if self.config is None:
            return True
        ended = None
        with suppress(UserError):
            ended = Outcome.read(storage.join(self.training, OUTCOME)) if self.training else None
        return ended is not None and ended.status == "user_error"

    def loss(self, result: TrainResult) -> float:
        """Validation loss of the best checkpoint, nats per token."""
        if result.already_done:
            self.add(read_metrics(result.training))
        step = int(result.best_checkpoint.rstrip("/").rpartition("-")[2])
        value = self._lines.get(step, {}).get("validation/loss", result.validation_loss)
        return math.nan if value is None else float(value)


class _Children:
    """The trainings that go on now, and what comes after them."""

    def __init__(
        self, plan: Plan, places: Places, study: Study, run: SweepRun, tags: Mapping[str, str], stops: Stops
    ) -> None:
        self._plan, self._places, self._study, self._run = plan, places, study, run
        self._tags, self._stops = dict(tags), stops
        self._free = slots(plan.base.train, plan.sweep.parallel)
        self._running: dict[Future[tuple[TrainResult, RunLink | None]], _Child] = {}
        self._reason, self._is_cancelled, self._failures = "", False, 0

    def work(self) -> None:
        """Until all are made, or the sweep is told to end. No rank is left, whatever is raised."""
        self._write()
        signals = StopSignals()
        with ThreadPoolExecutor(len(self._free), "sweep") as threads, signals.caught():
            try:
                while self._start(threads):
                    done, _ = wait(self._running, _POLL_SECONDS, FIRST_COMPLETED)
                    for future in done:
                        self._settle(future)
                    self._heed(signals)
            except BaseException:
                self._is_cancelled = True  # the threads end their ranks, and are waited for
                raise
        if self._is_cancelled:
            raise Cancelled(f"cancelled; what has finished stands; the sweep {self._plan.name} goes on when run again")
        if self._reason:
            raise Preempted(f"{self._reason}; saved; the sweep {self._plan.name} goes on when run again")

    def _start(self, threads: ThreadPoolExecutor) -> bool:
        """Begin as many as there is room for; whether any goes on."""
        while self._free and not self._reason and not self._is_cancelled and (trial := self._study.next()) is not None:
            if trial.was_stopped:  # by a process that was killed before it could say so
                trial.prune()
                continue
            if self._is_twin(trial):
                continue
            child = _Child(trial, self._free.pop())
            work = partial(contextvars.copy_context().run, self._train, child)
            self._running[threads.submit(work)] = child
        return bool(self._running)

    def _is_twin(self, trial: Trial) -> bool:
        """Whether an earlier training has the same values: it is not made again, and shows what that one comes to."""
        for row in self._study.rows():
            if row.number < trial.number and row.copy_of is None and row.parameters == trial.parameters:
                trial.copy(row)
                return True
        return False

    def _heed(self, signals: StopSignals) -> None:
        """The first signal lets all trainings save and end, the second ends them at once; so does a cancellation."""
        asked = signals.count and not self._reason
        if signals.count > 1 or self._stops.was_cancelled() or (asked and self._stops.is_cancelling()):
            self._is_cancelled = True
        elif asked:
            log.warning("sweep: %s: trainings save and end; once more to stop without saving", signals.first)
            self._reason = signals.first

    def _train(self, child: _Child) -> tuple[TrainResult, RunLink | None]:
        """In the child's thread."""
        trial, places = child.trial, self._places
        config = child.config = self._config(child)
        watchers = Watchers(
            on_start=child.started,
            on_line=lambda line: log.info("trial %d: %s", trial.number, line),
            on_metrics=child.add,
            was_cancelled=lambda: self._is_cancelled,
            stop_reason=lambda: self._reason or (_PRUNED if trial.was_stopped else ""),
        )
        return train_and_track(
            config,
            places.tracking,
            data=places.data,
            out=storage.join(places.store, "trainings"),
            init=places.init,
            tags={**self._tags, **speed_tags(config), **self._run.child_tags(trial.number, trial.parameters)},
            cache=places.cache,
            watchers=watchers,
            variables=child.slot.variables,
            title=f"trial {trial.number}",
        )

    def _config(self, child: _Child) -> PipelineConfig:
        """The training's configuration; what is changed in it beside the values that are searched is operational."""
        config = starting_from(self._plan.child(child.trial.parameters), self._places.init)
        changed: dict[str, Any] = {"threads": child.slot.threads}
        if rung := self._plan.first_rung:
            changed |= {"validate_every": rung, "checkpoint_every": rung}
        train = config.train.model_copy(update=changed)
        return config.model_copy(update={"train": train, "force": False})

    def _settle(self, future: Future[tuple[TrainResult, RunLink | None]]) -> None:
        """Tell the study how a training ended. One that was stopped with the sweep stays as it is, to go on."""
        child = self._running.pop(future)
        self._free.append(child.slot)
        trial = child.trial
        try:
            result, link = future.result()
            self._finish(child, result, link)
        except Preempted as stopped:
            if trial.was_stopped:
                self._failures = 0
                trial.prune(**self._facts(child), run_id=self._run.mark_pruned(child.training))
            elif not self._reason:  # train.max_hours
                self._reason = str(stopped)
        except Cancelled:
            self._is_cancelled = True
        except (UserError, TrainingFailed) as error:
            log.debug("%s", getattr(error, "details", ""))
            self._fail(child, error)
        self._write()

    def _finish(self, child: _Child, result: TrainResult, link: RunLink | None) -> None:
        loss, trial = child.loss(result), child.trial
        facts = {"steps": result.steps, "training": result.training, "run_id": link.run_id if link else ""}
        if not math.isfinite(loss):
            trial.fail("the validation loss is not finite", again=False, **facts)
            return
        trial.finish(loss, **facts)
        self._failures = 0

    def _fail(self, child: _Child, error: Exception) -> None:
        """One that cannot be trained ends no sweep; where three fail in a row and nothing came of any, it does.

        What does not come from the values is tried again when the sweep is run again.
        """
        self._failures += 1
        is_hopeless = self._failures >= _MOST_FAILURES and not any(row.state in TRAINED for row in self._study.rows())
        child.trial.fail(str(error), again=is_hopeless or not child.refuses_values(), **self._facts(child))
        log.warning("sweep: trial %d failed: %s", child.trial.number, error)
        if is_hopeless:
            raise error

    def _facts(self, child: _Child) -> dict[str, Any]:
        """Where a training that has not finished lies, and how many steps of it are saved."""
        if not child.training:
            return {}
        with suppress(UserError):
            newest = newest_checkpoint(child.training)
            return {"training": child.training, "steps": newest.step if newest else 0}
        return {"training": child.training}

    def _write(self) -> None:
        """The state so far as a log line and in MLflow."""
        result = _result(self._plan, self._study)
        if result.rows:
            log.info("sweep: %s", result.sentence)
        self._run.write(result)
