"""The study: what is next, what is stopped, and that a killed process loses nothing. Losses here are functions."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.exceptions import StorageInternalError

from gptpipe.config import PipelineConfig, SweepConfig
from gptpipe.errors import UserError
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import SweepResult, plain_table
from gptpipe.sweep.space import combination
from gptpipe.sweep.study import Study, Trial
from gptpipe.tracking.plots import parallel_coordinates

BASE = PipelineConfig.model_validate({"train": {"steps": 90, "warmup_steps": 5}})
LISTS = ["train.learning_rate=1e-4,1e-3,1e-2", "model.n_embd=32,64,128", "train.weight_decay=0,0.1,0.2"]
MEMORY = "sqlite:///:memory:"
PNG = b"\x89PNG"


def plan_of(*search: str, **options: Any) -> Plan:
    settings = {"reduction": 3, "rungs": 2, **options}
    return Plan.of(BASE, SweepConfig(search=list(search), **settings)).on("dataset")


def curve(parameters: Mapping[str, Any], step: int) -> float:
    """A loss that falls with the steps, by the learning rate most, by the width less, by the decay least."""
    rate = abs(math.log10(parameters.get("train.learning_rate", 1e-3)) + 2.6)
    width = 128 / parameters.get("model.n_embd", 128) * 0.05
    return 3 + rate + width + 0.001 * parameters.get("train.weight_decay", 0) + 5 * math.exp(-step / 30)


def train(trial: Trial, plan: Plan, loss: Callable[[Mapping[str, Any], int], float] = curve) -> int:
    """As the pipeline trains: validated at every rung's step, stopped where the study says so; steps done."""
    every = plan.first_rung or plan.base.train.steps
    for step in [*range(every, plan.base.train.steps, every), plan.base.train.steps]:
        if trial.report(step, loss(trial.parameters, step)):
            trial.prune(steps=step)
            return step
    trial.finish(loss(trial.parameters, plan.base.train.steps), steps=plan.base.train.steps)
    return plan.base.train.steps


def finish(plan: Plan, uri: str) -> Study:
    study = Study(plan, uri)
    while (trial := study.next()) is not None:
        train(trial, plan)
    return study


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sweeps.db'}"


def test_a_grid_trains_every_combination_once() -> None:
    rows = finish(plan_of(*LISTS, method="grid"), MEMORY).rows()
    assert len({str(row.parameters) for row in rows}) == len(rows) == 27
    assert {row.state for row in rows} == {"finished"}
    assert all(row.loss == pytest.approx(curve(row.parameters, 90)) for row in rows)


@pytest.mark.parametrize(("reduction", "rungs", "steps"), [(3, 2, 27 * 10 + 9 * 20 + 3 * 60), (4, 1, 27 * 23 + 6 * 67)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_halving_finds_the_grid_s_best_with_a_part_of_its_steps(
    reduction: int, rungs: int, steps: int, seed: int
) -> None:
    """Whatever order is drawn, none goes on that does not belong to the best."""
    grid = plan_of(*LISTS, method="grid")
    best = min((combination(grid.space, place) for place in range(27)), key=lambda each: curve(each, 90))
    plan = plan_of(*LISTS, method="asha", seed=seed, reduction=reduction, rungs=rungs)
    study, done = Study(plan, MEMORY), dict[int, int]()
    while (trial := study.next()) is not None:
        done[trial.number] = train(trial, plan)
    rows = study.rows()
    winner = SweepResult(plan, rows, {}).best
    assert winner is not None
    assert winner.parameters == best
    assert [row.number for row in rows] == list(range(27))
    assert {row.state for row in rows} == {"finished", "pruned"}
    assert {row.number: row.steps for row in rows} == done
    assert sum(done.values()) == steps


def test_one_that_goes_on_keeps_its_number_and_the_best_of_all_come_go_on() -> None:
    """The last that comes is the best, and the one that led until then is not among the best three of nine."""
    plan = plan_of("train.seed=" + ",".join(map(str, range(9))), method="asha")
    study = Study(plan, MEMORY)
    order = [values["train.seed"] for number in range(9) if (values := plan.listed(number))]

    def loss(parameters: Mapping[str, Any], step: int) -> float:
        return 9.0 - order.index(parameters["train.seed"]) - step / 100

    trained = []
    while (trial := study.next()) is not None:
        trained.append((trial.number, order.index(trial.parameters["train.seed"]), train(trial, plan, loss)))
    # the best so far is sure of a place when two are still out: the last three are not stopped at the first rung
    assert sorted(trained) == sorted(
        [(number, number, 10) for number in range(6)] + [(number, number, 30) for number in (6, 7)] + [(8, 8, 90)]
    )
    rows = study.rows()
    assert [(row.number, row.state, row.steps) for row in rows[5:]] == [
        (5, "pruned", 10),
        (6, "pruned", 30),
        (7, "pruned", 30),
        (8, "finished", 90),
    ]


def test_one_that_hears_late_of_its_stop_takes_no_place_beyond_it() -> None:
    """Each trains on past the next rung before it stops; the one that is fourth at the first is the best there."""
    plan = plan_of("train.seed=" + ",".join(map(str, range(9))), method="asha")
    study = Study(plan, MEMORY)

    def loss(number: int, step: int) -> float:
        return 0.5 if (number, step) == (3, 30) else 5.0 + number - step / 100

    while (trial := study.next()) is not None:
        for step in (10, 20, 30, 40):
            trial.report(step, loss(trial.number, step))
        if trial.was_stopped:
            trial.prune(steps=40)
        else:
            trial.finish(loss(trial.number, 90), steps=90)
    assert [row.number for row in study.rows() if row.state == "finished"] == [0]


def test_a_database_that_is_away_stops_nothing_and_hears_of_it_later(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of("train.seed=1,2,3", method="asha")
    study = Study(plan, uri)
    first, second, third = (study.next() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None

    def away(*_: Any) -> None:
        raise StorageInternalError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "report", away)
        assert not first.report(10, 1.0)
        patch.undo()
        patch.setattr(optuna.trial.Trial, "set_user_attr", away)
        assert not second.report(10, 2.0)
    assert caplog.text.count("cannot be judged") == 2
    assert not first.report(20, 0.9)  # it has passed the rung
    assert third.report(10, 3.0)
    third.prune(steps=10)
    second.finish(2.0, steps=90)
    assert not first.report(30, 0.5)  # the only one that has a place here
    first.finish(0.4, steps=90)
    assert study.next() is None
    assert [row.state for row in study.rows()] == ["finished", "finished", "pruned"]


def test_what_is_drawn_does_not_depend_on_who_has_gone_on_by_then() -> None:
    plan = plan_of("train.learning_rate=1e-4..1e-2", method="asha", trials=6, rungs=1)
    at_once, in_turn = Study(plan, MEMORY), Study(plan, MEMORY)  # a database each
    drawn = [trial.parameters for _ in range(6) if (trial := at_once.next())]
    order = []
    while (trial := in_turn.next()) is not None:
        order.append(trial.number)
        if trial.report(plan.first_rung, float(trial.number)):
            trial.prune(steps=plan.first_rung)
        else:
            trial.finish(float(trial.number), steps=90)
    assert order.index(0, 1) < order.index(5)  # the first one goes on before the last is drawn
    assert [row.parameters for row in in_turn.rows()] == drawn


def test_a_loss_that_is_no_number_goes_on_nowhere_and_is_not_waited_for() -> None:
    plan = plan_of("train.seed=1,2,3", method="asha", rungs=1, reduction=2)
    study = Study(plan, MEMORY)
    ended = []
    while (trial := study.next()) is not None:
        ended.append(
            (trial.number, train(trial, plan, lambda values, _: math.nan if values["train.seed"] == 1 else 2.0))
        )
    diverged = next(row.number for row in study.rows() if row.parameters["train.seed"] == 1)
    assert [steps for number, steps in ended if number == diverged] == [45]
    assert sum(row.state == "finished" for row in study.rows()) == 1


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_draws_lie_in_the_range_and_no_two_are_alike(method: str) -> None:
    plan = plan_of("train.learning_rate=1e-4..1e-2", "train.batch_size=2..64", method=method, trials=14)
    rows = finish(plan, MEMORY).rows()
    rates = [row.parameters["train.learning_rate"] for row in rows]
    assert len(set(rates)) == len(rows) == 14
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) > 2  # on a log scale; on a linear one they would be a tenth
    assert all(type(row.parameters["train.batch_size"]) is int for row in rows)


def test_tpe_draws_where_it_was_good() -> None:
    rows = finish(plan_of("train.learning_rate=1e-5..1", method="tpe", trials=30), MEMORY).rows()
    distances = [abs(math.log10(row.parameters["train.learning_rate"]) + 2.6) for row in rows]
    first, last = distances[:10], distances[-10:]
    assert sum(last) / 10 < sum(first) / 10


@pytest.mark.parametrize("method", ["grid", "asha"])
def test_what_a_killed_process_had_begun_is_gone_on_with_first(uri: str, method: str) -> None:
    plan = plan_of(*LISTS[:2], method=method)
    study = Study(plan, uri)
    done = [study.next() for _ in range(3)]
    begun = [study.next() for _ in range(2)]
    for trial in done:
        assert trial is not None
        trial.finish(1.0 + trial.number, steps=90)
    assert begun[0] is not None
    assert begun[1] is not None
    begun[0].report(5, 4.0)
    again = Study(plan, uri)  # as a new process opens it
    resumed = [again.next(), again.next()]
    assert [trial and (trial.number, trial.parameters) for trial in resumed] == [
        (trial.number, trial.parameters) for trial in begun if trial
    ]
    assert resumed[0] is not None
    resumed[0].report(5, 4.0)
    for trial in resumed:
        assert trial is not None
        trial.finish(9.0, steps=90)
    rows = finish(plan, uri).rows()
    assert len({str(row.parameters) for row in rows}) == len(rows) == 9
    assert {row.state for row in rows[5:]} == ({"finished"} if method == "grid" else {"finished", "pruned"})
    assert [row.loss for row in rows[:5]] == [1.0, 2.0, 3.0, 9.0, 9.0]


def test_draws_of_a_process_that_goes_on_are_new_ones(uri: str) -> None:
    search = "train.learning_rate=1e-4..1e-2"
    whole = [row.parameters for row in finish(plan_of(search, method="random", trials=6), MEMORY).rows()]
    finish(plan_of(search, method="random", trials=3), uri)
    rows = finish(plan_of(search, method="random", trials=6), uri).rows()
    assert [row.parameters for row in rows] == whole


def test_a_training_that_was_stopped_and_not_told_is_known(uri: str) -> None:
    plan = plan_of(*LISTS, method="asha")
    study = Study(plan, uri)
    going, stopped = study.next(), study.next()
    assert going is not None
    assert stopped is not None
    assert not going.report(plan.first_rung - 1, 3.0)
    assert stopped.report(plan.first_rung, 9.0)
    again = Study(plan, uri)
    first, second = again.next(), again.next()
    assert first is not None
    assert second is not None
    assert [first.was_stopped, second.was_stopped] == [False, True]


def test_a_longer_search_takes_up_those_that_were_stopped(uri: str) -> None:
    """Two of six go on, and four of twelve: by then, one that was stopped for good may be among them."""
    search = "train.learning_rate=1e-4..1e-2"
    short = finish(plan_of(search, method="asha", trials=6, rungs=1), uri).rows()
    assert sorted(row.state for row in short) == ["finished"] * 2 + ["pruned"] * 4
    plan = plan_of(search, method="asha", trials=12, rungs=1)
    rows = finish(plan, uri).rows()
    assert [row.parameters for row in rows[:6]] == [row.parameters for row in short]
    at_the_rung = sorted(rows, key=lambda row: curve(row.parameters, plan.first_rung))
    ended = {row.number for row in rows if row.state == "finished"}
    assert {row.number for row in at_the_rung[:4]} <= ended
    assert ended == {row.number for row in at_the_rung[:4]} | {row.number for row in short if row.state == "finished"}


def test_what_failed_by_its_values_is_not_tried_again_and_what_did_not_is(uri: str) -> None:
    plan = plan_of("train.seed=1,2", method="grid")
    study = Study(plan, uri)
    by_values, by_machine = study.next(), study.next()
    assert by_values is not None
    assert by_machine is not None
    by_values.fail("no memory for it", again=False)
    by_machine.fail("the disk is full", again=True)
    assert study.next() is None
    again = Study(plan, uri)
    once_more = again.next()
    assert once_more is not None
    assert once_more.parameters == by_machine.parameters
    assert once_more.number == by_machine.number == 1
    once_more.finish(2.0)
    assert again.next() is None
    assert [(row.state, row.reason) for row in again.rows()] == [("failed", "no memory for it"), ("finished", "")]


def test_the_same_values_are_not_trained_twice(uri: str) -> None:
    plan = plan_of("train.seed=1..3", method="random", trials=8)
    study = Study(plan, uri)
    first, second = study.next(), study.next()
    assert first is not None
    assert second is not None
    second.copy(study.rows()[0])
    assert study.rows()[1].state == "running"  # as its original is
    first.finish(2.5, steps=90, training="there", run_id="r")
    row = study.rows()[1]
    assert (row.number, row.state, row.loss, row.steps, row.copy_of, row.training) == (
        1,
        "finished",
        2.5,
        0,
        0,
        "there",
    )
    assert SweepResult(plan, study.rows(), {}).best == study.rows()[0]


def test_a_name_belongs_to_one_search(uri: str) -> None:
    finish(plan_of("train.seed=1,2", method="grid", name="mine"), uri)
    with pytest.raises(UserError, match="other settings") as refused:
        Study(plan_of("train.seed=1,2,3", method="grid", name="mine"), uri)
    assert "mine" in refused.value.where
    assert "--name" in refused.value.hint


def test_a_database_that_cannot_be_used_is_said_without_its_password(tmp_path: Path) -> None:
    for uri in (
        "postgresql+psycopg://me:secret@127.0.0.1:9/sweeps",
        "no database",
        f"sqlite:///{tmp_path}/absent/x.db",
        "mysql+nothing://me:secret@there/x",
    ):
        with pytest.raises(UserError, match="database of sweeps") as refused:
            Study(plan_of("train.seed=1,2", method="grid"), uri)
        assert "GPTPIPE_SWEEPS_URI" in refused.value.where
        assert "secret" not in str(refused.value)


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as other:
        other.execute("create table alembic_version (version_num varchar(32) not null)")
        other.execute("insert into alembic_version values ('0584bdc529eb')")
    with pytest.raises(UserError, match="database of sweeps") as refused:
        Study(plan_of("train.seed=1,2", method="grid"), f"sqlite:///{file}")
    assert "not MLflow's own" in refused.value.hint


@pytest.mark.parametrize("method", ["grid", pytest.param("asha", marks=pytest.mark.slow)])
def test_importances_are_in_the_order_of_what_matters(method: str) -> None:
    study = finish(plan_of(*LISTS, method=method), MEMORY)
    shares = study.importances()
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "train.learning_rate"
    assert set(shares) == {line.partition("=")[0] for line in LISTS}


def test_few_trainings_tell_no_importances() -> None:
    assert finish(plan_of("train.seed=1,2,3", method="grid"), MEMORY).importances() == {}


def test_the_table_begins_with_the_best_and_its_file_trains_it() -> None:
    plan = plan_of(*LISTS[:2], method="asha")
    study = finish(plan, MEMORY)
    result = SweepResult(plan, study.rows(), study.importances())
    best = result.best
    assert best is not None
    losses = [row.loss for row in result.ranking if row.state == "finished" and row.loss is not None]
    assert losses == sorted(losses)
    lines = result.table(lambda row: f"http://there/{row.number}").splitlines()
    assert lines[2].startswith(f"| [{best.number}](<http://there/{best.number}>) |")
    assert len(lines) == 2 + 9
    assert plain_table(result)[1].split()[0] == str(best.number)
    config = PipelineConfig.model_validate(yaml.safe_load(result.yaml))
    assert config == plan.child(best.parameters)
    assert result.yaml.splitlines()[0] in result.markdown()
    assert "stopped early" in result.sentence
    assert result.as_dict()["best"]["number"] == best.number


def test_the_picture_bears_trainings_without_a_loss_and_a_single_one(uri: str) -> None:
    plan = plan_of("train.optimizer=adamw,muon", "train.learning_rate=1e-4..1e-2", method="random", trials=4)
    study = Study(plan, uri)
    assert parallel_coordinates(SweepResult(plan, study.rows(), {})) == b""
    first, second = study.next(), study.next()
    assert first is not None
    assert second is not None
    first.finish(3.0, steps=90)
    second.fail("no", again=False)
    assert parallel_coordinates(SweepResult(plan, study.rows(), {})).startswith(PNG)
    train_rest = finish(plan, uri)
    assert parallel_coordinates(SweepResult(plan, train_rest.rows(), {})).startswith(PNG)
