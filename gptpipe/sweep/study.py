"""A sweep's study, by Optuna: which training is next, which one is stopped early, and what all of them came to.

The study is in a database, so that a sweep whose process was killed goes on where it was. One process works on it at a
time: the caller holds a lease.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from gptpipe.config import digest
from gptpipe.errors import UserError
from gptpipe.sweep.database import explained, open_study, quieten
from gptpipe.sweep.halving import Contender, promoted
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.space import Dimension

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

_FINGERPRINT, _REPLACES, _AGAIN, _COPY = "fingerprint", "replaces", "again", "copy_of"
_STOPPED_AT, _CLEARED = "stopped_at", "cleared"  # steps: the rung at which it waits, and the last that it has passed
_FACTS = ("steps", "training", "run_id", "reason")
_STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
_LEAST_TRIALS = 4  # from which importances say anything
_GOOD = 0.25  # share of the trainings that PED-ANOVA compares with all of them


@dataclass(frozen=True)
class Row:
    """A training of a sweep, as its table shows it.

    Attributes:
        state: finished, pruned, failed, running or waiting. parameters: by key, in the space's order.
        loss: validation loss in nats per token, of the best checkpoint where it finished, otherwise the last one.
        steps: done. training: URL of its folder. run_id: in MLflow. reason: why it failed.
        copy_of: the training with the same values, which was not made again; None where it is one of its own.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    loss: float | None
    steps: int
    training: str = ""
    run_id: str = ""
    reason: str = ""
    copy_of: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Trial:
    """A training that is to be made now. `report` is called from its thread, the rest from the sweep's.

    Attributes:
        number: of the training; one that goes on keeps it.
        was_stopped: whether it waits at a rung; also where a process was killed before it could say so.
    """

    def __init__(self, study: Study, trial: optuna.trial.Trial, number: int, parameters: dict[str, Any]) -> None:
        self._study, self._trial, self.number, self.parameters = study, trial, number, parameters
        attributes = trial.user_attrs
        self.was_stopped = _STOPPED_AT in attributes
        self._cleared = int(attributes.get(_CLEARED, 0))
        self._reported = set(study.frozen(trial.number).intermediate_values)
        self._unsaid: dict[int, float] = {}  # losses that the database has not taken yet
        self._is_lost = False

    def report(self, step: int, loss: float) -> bool:
        """A validation loss, in nats per token; whether the training is to be stopped.

        It is at every rung, unless it surely is among those that go on. A database that does not answer stops nothing:
        the training goes on without being judged.
        """
        from optuna.exceptions import StorageInternalError

        if step not in self._reported:
            self._unsaid[step] = loss
        try:
            for each in sorted(self._unsaid):
                self._trial.report(self._unsaid[each], each)
                self._reported.add(each)
                del self._unsaid[each]
            if step > self._cleared and step in self._study.plan.rung_steps and not self.was_stopped:
                goes_on = self._study.is_promoted(self.number, step)
                self._trial.set_user_attr(_CLEARED if goes_on else _STOPPED_AT, step)
                self._cleared, self.was_stopped = step, not goes_on
        except StorageInternalError as error:
            if not self._is_lost:
                log.warning("sweep: trial %d cannot be judged: the database does not answer (%s)", self.number, error)
            self._is_lost = True
        return self.was_stopped

    def finish(self, loss: float, **facts: Any) -> None:
        """It is done, with the loss of its best checkpoint; facts are those of `Row`."""
        self._end("COMPLETE", loss, facts)

    def prune(self, **facts: Any) -> None:
        """It was stopped at a rung, for now or for good."""
        self._end("PRUNED", None, facts)

    def fail(self, reason: str, *, again: bool, **facts: Any) -> None:
        """It cannot be done.

        Args:
            again: whether the next process tries it again: what failed was not the values.
        """
        self._end("FAIL", None, {**facts, "reason": reason[:500], **({_AGAIN: True} if again else {})})

    def copy(self, row: Row) -> None:
        """It has the values of an earlier one: it is not made, and shows whatever that one comes to."""
        if row.state == "finished" and row.loss is not None:
            self._end("COMPLETE", row.loss, {_COPY: row.number})
        else:  # by which no sampler judges the values
            self._end("FAIL", None, {_COPY: row.number})

    def _end(self, state: str, loss: float | None, facts: Mapping[str, Any]) -> None:
        from optuna.trial import TrialState

        with explained(self._study.uri):
            for name, value in facts.items():
                self._trial.set_user_attr(name, value)
            self._study.tell(self._trial, loss, TrialState[state])


class Study:
    """The study of a plan, made when it is not there.

    Args:
        uri: of the database, as SQLAlchemy names it.

    Raises:
        UserError: the database cannot be used, or a sweep of this name searches something else.
    """

    def __init__(self, plan: Plan, uri: str) -> None:
        self.plan, self.uri = plan, uri
        with explained(uri):
            self._study = open_study(plan.name, uri)
            known = self._study.user_attrs.get(_FINGERPRINT)
            if known is None:
                self._study.set_user_attr(_FINGERPRINT, plan.fingerprint)
            elif known != plan.fingerprint:
                raise UserError(
                    "a sweep of this name has other settings, keys, values or texts",
                    where=f"sweep.name={plan.name}",
                    hint="give the same ones, or another --name",
                )
            self._unfinished = self._begin_again()

    def next(self) -> Trial | None:
        """What is to be trained next, first what a killed process had begun; None when all are made."""
        import optuna

        with explained(self.uri):
            trials = self._study.get_trials(deepcopy=False)
            if self._unfinished:
                trial = optuna.trial.Trial(self._study, self._unfinished.pop(0))
            else:
                if not any(each.state.name == "WAITING" for each in trials) and not self._promote(trials):
                    number = len(_current(trials))
                    if number >= self.plan.trials:
                        return None
                    if (values := self.plan.listed(number)) is not None:
                        self._study.enqueue_trial(values)
                # each draw has a seed of its own: a process that goes on does not draw the first ones again
                self._study.sampler = _sampler(self.plan, len(_current(trials)))
                trial = self._study.ask()
            parameters = {each.key: trial._suggest(each.key, distribution_of(each)) for each in self.plan.space}
            number = _numbers(self._study.get_trials(deepcopy=False))[trial.number]
            return Trial(self, trial, number, parameters)

    def tell(self, trial: optuna.trial.Trial, loss: float | None, state: optuna.trial.TrialState) -> None:
        self._study.tell(trial, loss, state)

    def frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def is_promoted(self, number: int, step: int) -> bool:
        """Whether a training that has come to this rung surely goes on from it."""
        trials = self._study.get_trials(deepcopy=False)
        _, contenders = _field(trials)
        there = [replace(each, stopped_at=step) if each.number == number else each for each in contenders]
        return number in self._promoted(trials, there)

    def rows(self) -> list[Row]:
        """All trainings that have begun, by number."""
        with explained(self.uri):
            trials = self._study.get_trials(deepcopy=False)
            numbers = _numbers(trials)
            rows = {numbers[each.number]: _row(each, numbers[each.number], self.plan) for each in _begun(trials)}
            return [_shown(rows[number], rows) for number in sorted(rows)]

    def importances(self) -> dict[str, float]:
        """The share of each key in what makes good trainings good, the largest first; empty where too few tell.

        By PED-ANOVA (Watanabe et al. 2023). With asha it is of the losses at the first rung, which all have.
        """
        import optuna

        losses = [
            (trial, _judged(trial, self.plan.first_rung)) for trial in _begun(self._study.get_trials(deepcopy=False))
        ]
        known = [(trial, loss) for trial, loss in losses if loss is not None]
        if len(known) < _LEAST_TRIALS or len({loss for _, loss in known}) < 2:
            return {}
        quieten()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scratch = optuna.create_study()
            for trial, loss in known:
                made = optuna.create_trial(params=trial.params, distributions=trial.distributions, value=loss)
                scratch.add_trial(made)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_GOOD)
            shares = optuna.importance.get_param_importances(scratch, evaluator=evaluator)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def _promote(self, trials: list[FrozenTrial]) -> bool:
        """Let one that waits at a rung go on, where one surely does.

        For Optuna a stopped trial has ended, so another one with the same values takes its place, and its training
        goes on from its checkpoint.
        """
        current, contenders = _field(trials)
        for number in self._promoted(trials, contenders):
            trial, step = current[number], current[number].user_attrs[_STOPPED_AT]
            log.info("sweep: trial %d goes on: it is among the best at step %d", number, step)
            self._study.enqueue_trial(trial.params, user_attrs={_REPLACES: trial.number, _CLEARED: step})
            return True
        return False

    def _promoted(self, trials: Sequence[FrozenTrial], contenders: Sequence[Contender]) -> list[int]:
        expected = self.plan.trials - sum(map(_is_copy, trials))
        return promoted(contenders, expected, self.plan.rung_steps, self.plan.sweep.reduction)

    def _begin_again(self) -> list[int]:
        """The trials that a killed process had begun. Those that failed by no fault of their values wait once more."""
        unfinished = []
        for trial in _current(self._study.get_trials(deepcopy=False)):
            if trial.state.name == "RUNNING":
                unfinished.append(trial._trial_id)
            elif _AGAIN in trial.user_attrs:
                kept = {key: trial.user_attrs[key] for key in [_CLEARED] if key in trial.user_attrs}
                self._study.enqueue_trial(trial.params, user_attrs={_REPLACES: trial.number, **kept})
        return unfinished


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """A key's values as Optuna draws from them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.values:
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _current(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All but those that another one is made in place of."""
    replaced = {trial.user_attrs.get(_REPLACES) for trial in trials}
    return [trial for trial in trials if trial.number not in replaced]


def _begun(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in _current(trials) if trial.state.name != "WAITING"]


def _numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    """For each trial the number of its training, which it shares with all that it is in place of."""
    numbers: list[int] = []
    new = count()
    for trial in trials:
        replaced = trial.user_attrs.get(_REPLACES)
        numbers.append(next(new) if replaced is None else numbers[replaced])
    return numbers


def _field(trials: Sequence[FrozenTrial]) -> tuple[dict[int, FrozenTrial], list[Contender]]:
    """The trials that stand for their trainings, by number, and what halving compares."""
    numbers = _numbers(trials)
    current = {numbers[each.number]: each for each in _current(trials) if not _is_copy(each)}
    contenders = []
    for number, trial in current.items():
        losses = {step: loss for past in _history(trial, trials) for step, loss in past.intermediate_values.items()}
        state = trial.state.name
        stopped_at = trial.user_attrs.get(_STOPPED_AT, 0) if state == "PRUNED" else 0
        if stopped_at:  # what it trained until it heard of it counts once it goes on
            losses = {step: loss for step, loss in losses.items() if step <= stopped_at}
        contenders.append(Contender(number, losses, stopped_at, state in ("FAIL", "COMPLETE"), state == "FAIL"))
    return current, contenders


def _history(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """A trial, the one in whose place it is, and so on to the first."""
    history = [trial]
    while _REPLACES in history[-1].user_attrs:
        history.append(trials[history[-1].user_attrs[_REPLACES]])
    return history


def _is_copy(trial: FrozenTrial) -> bool:
    return _COPY in trial.user_attrs


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    import optuna

    seed = int(digest([plan.sweep.seed, number])[:8], 16)
    if plan.sweep.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _row(trial: FrozenTrial, number: int, plan: Plan) -> Row:
    facts = {name: trial.user_attrs[name] for name in _FACTS if name in trial.user_attrs}
    last = trial.last_step
    loss = trial.value if trial.state.name == "COMPLETE" else None if last is None else trial.intermediate_values[last]
    parameters = {each.key: trial.params[each.key] for each in plan.space if each.key in trial.params}
    return Row(
        number,
        _STATES[trial.state.name],
        parameters,
        loss if loss is not None and math.isfinite(loss) else None,
        int(facts.pop("steps", last or 0)),
        copy_of=trial.user_attrs.get(_COPY),
        **facts,
    )


def _shown(row: Row, rows: Mapping[int, Row]) -> Row:
    """A copy as the training that it is a copy of, which may have come farther since; it cost no step."""
    first = rows.get(row.copy_of) if row.copy_of is not None else None
    if first is None:
        return row
    return replace(first, number=row.number, steps=0, copy_of=first.number)


def _judged(trial: FrozenTrial, first_rung: int) -> float | None:
    """The loss by which a training is compared with the others; None where it has none, or is another's copy."""
    loss = trial.intermediate_values.get(first_rung) if first_rung else None
    if loss is None and trial.state.name == "COMPLETE" and not first_rung:
        loss = trial.value
    is_known = loss is not None and math.isfinite(loss) and not _is_copy(trial)
    return loss if is_known else None
