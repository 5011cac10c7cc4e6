"""What starts retrainings on the real stack: new text, the same one twice, and what `down` does to one that runs."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from gptpipe.services.ports import free_ports
from tests.fixtures.place import Place, folder_for_all, stack_in, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = "def add(a, b):\n    return a + b\n\n\ndef mean(values):\n    return sum(values) / len(values)\n\n\n" * 60
TINY = {
    "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "context_length": 16},
    "train": {
        "steps": 4,
        "batch_size": 4,
        "warmup_steps": 2,
        "validate_every": 0,
        "checkpoint_every": 2,
        "log_every": 1,
        "precision": "float32",
    },
    "evaluate": {"max_tokens": 64},
    "sample": {"max_new_tokens": 2},
}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with folder_for_all("deployments") as folder:
        text = folder / "text"
        text.mkdir()
        for number in range(8):
            (text / f"{number}.py").write_text(TEXT.replace("mean", f"mean_{number}"))
        (folder / "retrain.yaml").write_text(yaml.safe_dump({"data": {"corpus": [str(text)]}, **TINY}))
        with stack_in(folder, GPTPIPE_RETRAIN_CONFIG=str(folder / "retrain.yaml")) as place:
            yield place


@pytest.fixture(autouse=True)
def forget_what_was_said(place: Place) -> None:
    place.since = datetime.now(UTC)


def runs_of(place: Place, flow: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = place.prefect(
        "flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
    )
    return found


def wanted(place: Place, corpus: str = "", **train: Any) -> dict[str, Any]:
    """A retraining of a second, unless `train` says otherwise."""
    text = corpus or str(place.folder / "text")
    return {**TINY, "data": {"corpus": [{"url": text}]}, "train": {**TINY["train"], **train}}


def look_for_new_text(place: Place) -> dict[str, Any]:
    made = place.deployments()["watch-corpora/watch-corpora"]
    run = place.prefect(f"deployments/{made['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]
    return place.wait_for(run, "COMPLETED", 90)


def test_new_text_starts_a_retraining_and_old_text_does_not(place: Place) -> None:
    look_for_new_text(place)
    place.wait_for_words("8 of 8 files are new or changed")
    wait_until(lambda: runs_of(place, "retrain"), 60, "a retraining")
    (first,) = runs_of(place, "retrain")
    place.wait_for(first["id"], "COMPLETED", 180)
    look_for_new_text(place)
    place.wait_for_words("0 of 8 files are new or changed")
    (place.folder / "text" / "more.py").write_text(TEXT.replace("add", "subtract"))
    look_for_new_text(place)
    place.wait_for_words("1 of 9 files are new or changed")
    wait_until(lambda: len(runs_of(place, "retrain")) == 2, 60, "a second retraining")
    place.wait_for(runs_of(place, "retrain")[1]["id"], "COMPLETED", 180)
    assert len(runs_of(place, "retrain")) == 2


def states(place: Place, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = place.prefect(f"flow_run_states/?flow_run_id={run}")
    return found


def test_a_run_that_fails_or_ends_at_once_stays_as_it_ended(place: Place) -> None:
    """Longer than silence lasts: a late heartbeat made a crash of it, and the crash a new start, without end."""
    wrong = wanted(place)
    wrong["model"] = {**wrong["model"], "n_head": 3}
    failed = place.press_run("retrain/on-demand", **wrong)
    looked = place.press_run("watch-corpora/watch-corpora", corpus=[str(place.folder / "text")])
    place.wait_for(failed, "FAILED", 90)
    place.wait_for(looked, "COMPLETED", 90)
    before = {run: len(states(place, run)) for run in (failed, looked)}
    assert place.prefect(f"flow_runs/{looked}")["name"] == "watch · text"
    time.sleep(240)
    said = [line for line in place.lines() if line["flow_run_id"] == failed]
    (error,) = [line for line in said if line["level"] >= logging.ERROR]
    assert error["message"].startswith("model: n_embd 16 is not a multiple of n_head 3")
    assert not [line for line in place.lines() if "Traceback" in line["message"]]
    assert {run: len(states(place, run)) for run in (failed, looked)} == before
    assert place.state(failed)["type"] == "FAILED"
    assert "n_embd 16 is not a multiple of n_head 3" in place.state(failed)["message"]
    assert "files are new or changed" in place.state(looked)["message"]
    log = (place.folder / ".gptpipe" / "stack" / "logs" / "prefect.log").read_text()
    assert "already in terminal state" not in log


def test_a_schedule_starts_runs_that_train_and_one_that_watches_does(
    place: Place, up_again: Callable[..., None]
) -> None:
    """Every minute, twice; then new text is found by the other schedule alone and trained down to a model."""
    began = {run["id"] for run in runs_of(place, "retrain")}
    up_again(GPTPIPE_NIGHTLY_CRON="* * * * *")
    identities = {name: one["id"] for name, one in place.deployments().items()}

    def done(deployment: str) -> list[dict[str, Any]]:
        return [
            run
            for run in runs_of(place, "retrain")
            if run["id"] not in began
            and run["deployment_id"] == identities[deployment]
            and run["state_type"] == "COMPLETED"
        ]

    wait_until(lambda: len(done("retrain/nightly")) >= 2, 240, "two runs of the schedule")
    assert all(run["auto_scheduled"] for run in done("retrain/nightly"))
    assert "retrain/nightly next at" in examined(place)["schedules"]["detail"]
    up_again(GPTPIPE_WATCH_CRON="* * * * *")  # a nightly run would take the text before it is looked for
    place.since = datetime.now(UTC)
    (place.folder / "text" / "scheduled.py").write_text(TEXT.replace("add", "scheduled"))
    wait_until(lambda: done("retrain/on-new-data"), 180, "a retraining on new text")
    assert re.search(r"^watch-corpora: 1 of \d+ files are new or changed$", place.said(), re.MULTILINE)
    doctor = examined(place)
    assert "retrain/nightly" not in doctor["schedules"]["detail"]
    assert doctor["schedules"]["ok"]
    assert doctor["logs"]["ok"], doctor["logs"]


@pytest.mark.timeout(1200)
def test_nights_that_were_missed_are_run_once(place: Place, up_again: Callable[..., None]) -> None:
    """The servers are away while a schedule of every minute goes on: of those nights one is run, the last."""
    up_again(GPTPIPE_NIGHTLY_CRON="* * * * *")
    identity = place.deployments()["retrain/nightly"]["id"]
    assert place.call("down").returncode == 0
    away = datetime.now(UTC)
    time.sleep(200)
    back = datetime.now(UTC)
    up_again(GPTPIPE_NIGHTLY_CRON="* * * * *")

    def due() -> list[dict[str, Any]]:
        asked = {
            "flow_runs": {
                "deployment_id": {"any_": [identity]},
                "expected_start_time": {"after_": away.isoformat(), "before_": back.isoformat()},
            }
        }
        found: list[dict[str, Any]] = place.prefect("flow_runs/filter", asked)
        return found

    over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    wait_until(lambda: due() and all(run["state_type"] in over for run in due()), 600, "the nights that were missed")
    runs = sorted(due(), key=lambda run: str(run["expected_start_time"]))
    assert len(runs) >= 3
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    assert {run["state_name"] for run in runs[:-1]} == {"Missed"}  # the last one too, where the next was due by then
    assert "of the same schedule is due by now" in place.state(runs[0]["id"])["message"]


def examined(place: Place) -> dict[str, dict[str, Any]]:
    """What `gptpipe doctor` says, by check."""
    return {check["name"]: check for check in json.loads(place.call("doctor", "--json").stdout)["checks"]}


def test_doctor_names_a_schedule_that_plans_nothing_and_a_server_that_fails_in_silence(place: Place) -> None:
    identity = place.deployments()["evaluate/evaluate"]["id"]
    over = {"rrule": "DTSTART:20200101T000000\nFREQ=DAILY;UNTIL=20200103T000000", "timezone": "UTC"}
    (made,) = place.prefect(f"deployments/{identity}/schedules", [{"schedule": over, "active": True}])
    log = place.folder / ".gptpipe" / "stack" / "logs" / "prefect.log"
    before = log.read_bytes()
    try:
        with log.open("a") as file:
            file.write("Traceback (most recent call last):\n  File 'loop.py'\nRuntimeError: the loop ended\n")
        doctor = examined(place)
        assert (doctor["schedules"]["ok"], doctor["logs"]["ok"]) == (False, False)
        assert doctor["schedules"]["detail"] == "no run is planned of evaluate/evaluate"
        assert doctor["logs"]["detail"] == "prefect.log 1 traceback, last: RuntimeError: the loop ended"
        assert place.call("doctor").returncode == 1
    finally:
        log.write_bytes(before)
        place.prefect(f"deployments/{identity}/schedules/{made['id']}", method="DELETE")


def test_what_a_person_set_in_the_ui_stays(place: Place, up_again: Callable[..., None]) -> None:
    up_again(GPTPIPE_NIGHTLY_CRON="0 2 * * *")
    made = place.deployments()["retrain/nightly"]
    (own,) = made["schedules"]
    assert own["slug"] == "from-env"
    assert "comes from GPTPIPE_NIGHTLY_CRON" in made["description"]
    place.prefect(f"deployments/{made['id']}/schedules/{own['id']}", {"active": False}, method="PATCH")
    added = {"schedule": {"cron": "30 4 * * *", "timezone": "UTC"}, "active": True}
    place.prefect(f"deployments/{made['id']}/schedules", [added])
    watch = place.deployments()["watch-corpora/watch-corpora"]["id"]
    place.prefect(f"deployments/{watch}/pause_deployment", {})
    up_again(GPTPIPE_NIGHTLY_CRON="0 3 * * *")
    after = place.deployments()
    schedules = {one["schedule"]["cron"]: one["active"] for one in after["retrain/nightly"]["schedules"]}
    assert schedules == {"0 3 * * *": False, "30 4 * * *": True}
    assert after["watch-corpora/watch-corpora"]["paused"]
    said = json.loads(place.call("up", "--json", GPTPIPE_NIGHTLY_CRON="0 3 * * *").stdout)["notes"]
    assert any("GPTPIPE_NIGHTLY_CRON is paused in the UI" in note for note in said)
    assert any("`30 4 * * *` in UTC, added in the UI, stays" in note for note in said)
    assert any(note.startswith("watch-corpora/watch-corpora: paused in the UI") for note in said)
    place.prefect(f"deployments/{watch}/resume_deployment", {})
    said = json.loads(place.call("up", "--json", GPTPIPE_NIGHTLY_CRON="").stdout)["notes"]
    assert any("`0 3 * * *` in UTC is removed: GPTPIPE_NIGHTLY_CRON is empty" in note for note in said)
    assert [one["schedule"]["cron"] for one in place.deployments()["retrain/nightly"]["schedules"]] == ["30 4 * * *"]
    for one in place.deployments()["retrain/nightly"]["schedules"]:
        place.prefect(f"deployments/{made['id']}/schedules/{one['id']}", method="DELETE")


def test_the_same_training_twice_is_trained_once(place: Place) -> None:
    given = wanted(place, steps=300, checkpoint_every=300)
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
    asked = {"parameters": {"parameters": wanted(place, steps=5)}, "state": state}
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
    run = place.press_run("retrain/on-demand", **wanted(place, steps=1_000_000, checkpoint_every=100_000))
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


@pytest.fixture
def up_again(place: Place) -> Iterator[Callable[..., None]]:
    """Brings the stack up with other settings; as it was afterwards."""
    before = dict(place.settings)

    def up(**settings: str) -> None:
        place.settings = before | settings
        done = place.call("up")
        assert done.returncode == 0, done.stderr

    yield up
    up()


def test_the_same_training_twice_is_dropped_where_that_is_wanted(place: Place, up_again: Callable[..., None]) -> None:
    up_again(GPTPIPE_SAME_TRAINING="drop")
    given = wanted(place, steps=40_000, checkpoint_every=40_000)  # the second one begins long before it ends
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
    run = place.press_run("retrain/on-demand", **wanted(place))
    place.wait_for(run, "COMPLETED", 240)
    assert f"tokenize: on {engine}, started on this machine" in place.said()


def test_two_trainings_on_one_machine_come_one_after_the_other(place: Place) -> None:
    runs = [place.press_run("retrain/on-demand", **wanted(place, steps=300 + n, checkpoint_every=300)) for n in (1, 2)]
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
    run = place.press_run("retrain/on-demand", **wanted(place, corpus=corpus, **train))
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
    run = place.press_run("retrain/on-demand", **wanted(place, **train))
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
    run = place.press_run("retrain/on-demand", **wanted(place, steps=100_000, nproc=2))
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
