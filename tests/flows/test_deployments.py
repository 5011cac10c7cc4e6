"""What becomes of runs on the real stack: the same one twice, crashes, kills, a server that is away, and `down`."""

from __future__ import annotations

import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import torch

from gptpipe.services.ports import free_ports
from tests.fixtures.deployed import TEXT, deployed, other_settings, retraining, runs_of, states
from tests.fixtures.place import Place, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with deployed() as place:
        yield place


@pytest.fixture(autouse=True)
def forget_what_was_said(place: Place) -> None:
    place.since = datetime.now(UTC)


@pytest.fixture
def up_again(place: Place) -> Iterator[Callable[..., None]]:
    with other_settings(place) as up:
        yield up


def test_the_same_training_twice_is_trained_once(place: Place) -> None:
    given = retraining(place, steps=300, checkpoint_every=300)
    runs = [place.press_run("retrain/on-demand", **given) for _ in range(2)]
    for run in runs:
        place.wait_for(run, "COMPLETED", 240)
    said = place.said()
    assert "the same training runs already" in said
    assert said.count("train: 300 steps") == 1
    assert "train: already done" in said


def test_a_run_that_has_crashed_three_times_is_given_up(place: Place) -> None:
    made = place.deployments()["retrain/on-demand"]
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}
    asked = {"parameters": {"parameters": retraining(place, steps=5)}, "state": state}
    run = place.prefect(f"deployments/{made['id']}/create_flow_run", asked)["id"]
    for when in (later, later, datetime.now(UTC).isoformat()):
        lost = {"type": "SCHEDULED", "name": "LostMachine", "state_details": {"scheduled_time": when}}
        place.prefect(f"flow_runs/{run}/set_state", {"state": lost, "force": True})
    state = place.wait_for(run, "FAILED", 90)
    assert "crashed 3 times" in state["message"]
    assert "train: 5 steps" not in place.said()


def test_a_run_that_cannot_begin_is_given_up_and_says_why(place: Place) -> None:
    made = place.deployments()["retrain/on-demand"]
    body = {"parameters": {"steps": 3}, "state": {"type": "SCHEDULED"}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        place.prefect(f"deployments/{made['id']}/create_flow_run", body)
    assert b"steps" in refused.value.read()
    # another client does not look
    run = place.prefect(f"deployments/{made['id']}/create_flow_run", {**body, "enforce_parameter_schema": False})["id"]
    wait_until(lambda: place.state(run)["type"] == "FAILED", 240, "its end")
    assert "crashed 3 times" in place.state(run)["message"]


def test_a_training_goes_on_while_the_prefect_server_is_away_and_can_be_cancelled_afterwards(place: Place) -> None:
    """Longer than a lease lasts; it hangs, so that nothing is refused either."""
    run = place.press_run("retrain/on-demand", **retraining(place, steps=1_000_000, checkpoint_every=100_000))
    place.wait_for_step(10, 1_000_000)
    ranks = place.ranks()
    place.hang_prefect_server(80)
    assert place.ranks().keys() == ranks.keys()
    wait_until(lambda: machine_slots(place) == 1, 30, "the machine reserved once more")
    place.cancel(run)
    assert wait_until(lambda: not place.ranks(), 20, "the last rank's end") < 5
    place.wait_for(run, "CANCELLED", 90)
    wait_until(lambda: machine_slots(place) == 0, 10, "a free machine")


def machine_slots(place: Place) -> int:
    limits = place.prefect("v2/concurrency_limits/filter", {})
    return sum(limit["active_slots"] for limit in limits if limit["name"].startswith("gptpipe-machine-"))


def test_the_same_training_twice_is_dropped_where_that_is_wanted(place: Place, up_again: Callable[..., None]) -> None:
    up_again(GPTPIPE_SAME_TRAINING="drop")
    given = retraining(place, steps=40_000, checkpoint_every=40_000)  # the second one begins long before it ends
    first = place.press_run("retrain/on-demand", **given)
    wait_until(place.ranks, 60, "the first one's rank")
    second = place.press_run("retrain/on-demand", **given)
    place.wait_for(second, "CANCELLED", 90)
    assert place.state(first)["type"] == "RUNNING"
    place.cancel(first)
    place.wait_for(first, "CANCELLED", 60)
    assert place.said().count("training from the first step") == 1


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_deployment_tokenizes_on_another_engine(place: Place, up_again: Callable[..., None], engine: str) -> None:
    pytest.importorskip(f"prefect_{engine}", reason="infra/test.sh --all installs it")
    up_again(GPTPIPE_TASK_RUNNER=engine)
    (place.folder / "text" / f"{engine}.py").write_text(TEXT.replace("mean", engine))
    run = place.press_run("retrain/on-demand", **retraining(place))
    place.wait_for(run, "COMPLETED", 240)
    assert f"tokenize: on {engine}, started on this machine" in place.said()


def test_two_trainings_on_one_machine_come_one_after_the_other(place: Place) -> None:
    given = [retraining(place, steps=300 + number, checkpoint_every=300) for number in (1, 2)]
    runs = [place.press_run("retrain/on-demand", **each) for each in given]
    most = 0
    while any(place.state(run)["type"] != "COMPLETED" for run in runs):
        most = max(most, len(place.ranks()))
        time.sleep(0.3)
    assert most == 1
    assert "waiting until another training on this machine has ended" in place.said()


@pytest.mark.parametrize("stage", ["train", "tokenize"])
def test_a_worker_that_is_stopped_saves_what_runs_and_it_goes_on(place: Place, stage: str) -> None:
    """SIGTERM, as from a machine that is taken away: here the supervisor starts a worker again."""
    train = {"steps": 1500 if stage == "train" else 8, "checkpoint_every": 1000}
    corpus = str(place.folder / "text") if stage == "train" else "stdlib:"
    run = place.press_run("retrain/on-demand", **retraining(place, corpus=corpus, **train))
    if stage == "train":
        place.wait_for_step(200, 1500)
    else:
        wait_until(lambda: [r for r in runs_of(place, "tokenize") if r["state_type"] == "RUNNING"], 60, "tokenizing")
        time.sleep(2)
    (worker,) = place.processes("worker", "--pool", "gptpipe").values()
    family = worker.children(recursive=True)
    worker.terminate()
    psutil.wait_procs([worker, *family], timeout=30)
    assert not [process for process in family if process.is_running()]
    place.wait_for(run, "COMPLETED", 240)
    names = [state["name"] for state in place.prefect(f"flow_run_states/?flow_run_id={run}")]
    assert "Preempted" in names
    assert "Crashed" not in names
    if stage == "train":
        said = place.said()
        assert "SIGTERM: finishing the step and saving" in said
        (step,) = re.findall(r"training going on from step (\d+)", said)
        assert 200 <= int(step) < 1000


@pytest.mark.parametrize("what", ["its process", "its machine"])
def test_a_run_whose_process_is_killed_goes_on(place: Place, what: str) -> None:
    """The worker reports a process that was killed; of a machine that is gone nobody does, until it has been silent."""
    train = {"steps": 1501 if what == "its process" else 1502, "checkpoint_every": 100}
    run = place.press_run("retrain/on-demand", **retraining(place, **train))
    place.wait_for_step(200, train["steps"])
    (worker,) = place.processes("worker", "--pool", "gptpipe").values()
    killed = [worker, *worker.children(recursive=True)]
    if what == "its process":
        (flow,) = [process for process in killed if "prefect.engine" in process.cmdline()]
        killed = [flow]
    for process in killed:
        with suppress(psutil.Error):
            process.kill()
    wait_until(lambda: not place.ranks(), 10, "the end of its ranks")
    until = time.monotonic() + 300
    while (state := place.state(run))["type"] != "COMPLETED":
        assert state["name"] != "Failed"
        assert time.monotonic() < until, state
        time.sleep(0.5)
    names = [state["name"] for state in states(place, run)]
    assert names.count("LostMachine") == names.count("Crashed") == 1
    assert "waiting until another training on this machine" not in place.said()  # not for its own predecessor
    assert re.search(r"training going on from step [2-9]00", place.said())


def test_a_worker_that_could_not_work_does_not_start(place: Place) -> None:
    given = place.stack_environment()

    def refused(*words: str, **more: str) -> str:
        done = place.call("worker", *words, **{**given, **more})
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "no work pool nowhere" in refused("--cpu", "--pool", "nowhere")
    (port,) = free_ports(1)
    assert "does not answer" in refused("--cpu", PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    assert "GPTPIPE_S3" in refused("--cpu", GPTPIPE_S3_SECRET_KEY="another")
    if not torch.cuda.is_available():
        assert "this torch is the build for CPUs" in refused()
    made = place.deployments()["retrain/on-demand"]
    try:
        place.prefect("deployments/", {"name": "on-demand", "flow_id": made["flow_id"], "version": "0.0.7"})
        assert "the server's deployments are of 0.0.7" in refused("--cpu")
    finally:
        assert place.call("deploy", **given).returncode == 0


def test_down_cancels_what_runs_and_leaves_no_process(place: Place) -> None:
    run = place.press_run("retrain/on-demand", **retraining(place, steps=100_000, nproc=2))
    wait_until(lambda: len(place.ranks()) == 2, 90, "two ranks")
    time.sleep(2)
    done = place.call("down")
    assert done.returncode == 0, done.stderr
    assert "cancelled 1 run" in done.stderr
    assert place.processes() == {}
    assert not [p for p in psutil.process_iter() if "gptpipe.train" in _command(p) and str(place.folder) in _command(p)]
    assert place.call("up").returncode == 0
    assert place.state(run)["type"] == "CANCELLED"


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_file_of_settings_that_cannot_be_used_deploys_nothing(place: Place) -> None:
    before = place.deployments()
    wrong = Path(place.folder / "wrong.yaml")
    wrong.write_text("train: {stepz: 3}\n")
    api = {"PREFECT_API_URL": f"http://127.0.0.1:{place.ports['PREFECT']}/api"}
    done = place.call("deploy", GPTPIPE_RETRAIN_CONFIG=str(wrong), **api)
    assert done.returncode == 2
    assert "wrong.yaml" in done.stderr
    assert "stepz" in done.stderr
    assert place.deployments().keys() == before.keys()
