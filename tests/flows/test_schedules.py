"""What starts retrainings on the real stack by itself: schedules, new text; what a person changed stays."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

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


def test_a_run_that_fails_or_ends_at_once_stays_as_it_ended(place: Place) -> None:
    """Longer than silence lasts: a late heartbeat made a crash of it, and the crash a new start, without end."""
    wrong = retraining(place)
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
