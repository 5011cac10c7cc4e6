"""A sweep on the real stack: the button, its study in PostgreSQL, and what a cancellation leaves."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from dotenv import dotenv_values
from mlflow import MlflowClient
from mlflow.entities import Run

from gptpipe.tracking.sweeps import PARENT_TAG, SWEEP_TAG
from tests.fixtures.databases import open_at_once
from tests.fixtures.deployed import TEXT, TINY
from tests.fixtures.place import Place, folder_for_all, stack_in, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with folder_for_all("sweeps") as folder:
        (folder / "text").mkdir()
        for number in range(8):
            (folder / "text" / f"{number}.py").write_text(TEXT.replace("mean", f"mean_{number}"))
        with stack_in(folder) as place:
            yield place


def press(place: Place, steps: int, **sweep: object) -> str:
    text = {"corpus": [{"url": str(place.folder / "text")}]}
    pipeline = {**TINY, "data": text, "train": {**TINY["train"], "steps": steps}}
    return place.press_run("sweep/on-demand", sweep=sweep, pipeline=pipeline)


def runs(place: Place, tag: str) -> list[Run]:
    client = MlflowClient(tracking_uri=f"http://127.0.0.1:{place.ports['MLFLOW']}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [run for run in client.search_runs(experiments) if tag in run.data.tags]


def test_the_button_sweeps_and_the_study_is_in_postgresql(place: Place) -> None:
    run = press(place, 4, search=["train.seed=1,2"], method="grid", name="seeds")
    state = place.wait_for(run, "COMPLETED", 240)
    assert "2 trainings, 2 finished" in state["message"]
    uri = dotenv_values(place.folder / ".gptpipe" / "stack" / "stack.env")["GPTPIPE_SWEEPS_URI"]
    assert uri is not None
    with psycopg.connect(uri.replace("+psycopg", "")) as connection:
        (states,) = connection.execute("select array_agg(state::text) from trials").fetchall()
    assert states == (["COMPLETE", "COMPLETE"],)
    (parent,) = runs(place, SWEEP_TAG)
    assert {run.data.tags[PARENT_TAG] for run in runs(place, PARENT_TAG)} == {parent.info.run_id}
    assert parent.data.tags["prefect.flow_run_id"] == run
    pages = [found for found in place.prefect("artifacts/filter", {}) if found["key"] == "sweep"]
    assert [found["flow_run_id"] for found in pages] == [run]


def test_a_cancelled_sweep_leaves_no_rank(place: Place) -> None:
    run = press(place, 1_000_000, search=["train.seed=1,2"], method="grid", name="long", parallel=2)
    wait_until(lambda: len(place.ranks()) == 2, 120, "two trainings at once")
    place.cancel(run)
    place.wait_for(run, "CANCELLED", 60)
    wait_until(lambda: not place.ranks(), 20, "the end of the ranks")
    status = {run.data.tags[SWEEP_TAG]: run.info.status for run in runs(place, SWEEP_TAG)}
    assert status["long"] == "KILLED"


def test_sweeps_that_are_the_first_in_a_database_at_once_all_work_in_it(place: Place) -> None:
    uri = place.stack_environment()["GPTPIPE_SWEEPS_URI"]
    for number in range(5):
        with psycopg.connect(uri.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"create database at_once_{number}".encode())
        open_at_once(f"{uri.rsplit('/', 1)[0]}/at_once_{number}")
