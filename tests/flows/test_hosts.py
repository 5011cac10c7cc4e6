"""Trainings over two machines through a real Prefect server: the second is a network namespace behind a cable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psutil
import pytest

from tests.fixtures.place import Place, folder_for_all, stack_in, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow]

_NET = f"10.{200 + os.getpid() // 250 % 50}.{os.getpid() % 250}"  # of this run: another one's may still be there
HERE, THERE = f"{_NET}.1", f"{_NET}.2"
SPACE, NEAR, FAR = f"gptpipe-{os.getpid()}", f"gpn{os.getpid() % 10**8}", f"gpf{os.getpid() % 10**8}"
TEXT = "def add(a, b):\n    return a + b\n\n\ndef mean(values):\n    return sum(values) / len(values)\n\n\n" * 60
MODEL = {"n_layer": 1, "n_embd": 16, "n_head": 2, "context_length": 16}
TRAIN = {
    "batch_size": 8,
    "warmup_steps": 2,
    "checkpoint_every": 5,
    "validate_every": 0,
    "log_every": 1,
    "precision": "float32",
    "threads": 1,
    "nproc": 2,
    "nodes": 2,
}


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    """A namespace joined to this one by a veth pair, as a machine by a cable."""
    if shutil.which("ip") is None:
        pytest.skip("`ip` is absent: Debian's iproute2 brings it")
    remove_spaces_of_killed_runs()
    made = ip("netns", "add", SPACE)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        for words in (
            f"link add {NEAR} type veth peer name {FAR} netns {SPACE}",
            f"address add {HERE}/24 dev {NEAR}",
            f"link set {NEAR} up",
            f"-n {SPACE} address add {THERE}/24 dev {FAR}",
            f"-n {SPACE} link set lo up",
            f"-n {SPACE} link set {FAR} up",
        ):
            done = ip(*words.split())
            assert done.returncode == 0, done.stderr
        yield
    finally:
        ip("link", "delete", NEAR)
        ip("netns", "delete", SPACE)


def remove_spaces_of_killed_runs() -> None:
    """With a namespace goes its end of the cable, and with that the other end."""
    for line in ip("netns", "list").stdout.splitlines():
        name = line.split()[0]
        if name.startswith("gptpipe-") and not psutil.pid_exists(int(name.removeprefix("gptpipe-"))):
            ip("netns", "delete", name)


@pytest.fixture(scope="module")
def place(cable: None) -> Iterator[Place]:
    """The stack and worker A here, worker B at the other end of the cable."""
    with folder_for_all("hosts") as folder, stack_in(folder, HERE) as place:
        text = place.folder / "text"
        text.mkdir()
        for number in range(8):
            (text / f"{number}.py").write_text(TEXT.replace("mean", f"mean_{number}"))
        start_a(place)
        start_b(place)
        yield place


@pytest.fixture(autouse=True)
def forget_what_was_said(place: Place) -> None:
    place.since = datetime.now(UTC)


def start_a(place: Place) -> subprocess.Popen[bytes]:
    return place.start_worker("A")


def start_b(place: Place) -> subprocess.Popen[bytes]:
    return place.start_worker("B", "ip", "netns", "exec", SPACE)


def wanted(place: Place, **train: Any) -> dict[str, Any]:
    return {
        "data": {"corpus": [{"url": str(place.folder / "text")}]},
        "model": MODEL,
        "train": {**TRAIN, **train},
        "evaluate": {"max_tokens": 64},
        "sample": {"max_new_tokens": 2},
    }


def weights(place: Place, training: str, steps: int) -> str:
    """The SHA-256 of a training's final weights and moments, out of the object store."""
    code = (
        "import sys; from gptpipe import storage; from gptpipe.config.settings import prepare_environment\n"
        "prepare_environment(); sys.stdout.buffer.write(b''.join(storage.read_bytes(u) for u in sys.argv[1:]))"
    )
    names = [f"{training}/step-{steps:08d}/{name}.safetensors" for name in ("model", "optimizer")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=place.folder,
        env=place.environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return hashlib.sha256(done.stdout).hexdigest()


def undisturbed(place: Place, run: str, steps: int) -> str:
    """The same weights, of a training on this machine alone with as many ranks."""
    training = trained(place, run)
    dataset = json.loads(
        place.call(
            "tokenize", "--corpus", str(place.folder / "text"), "--out", "s3://gptpipe/datasets", "--json"
        ).stdout
    )["dataset"]
    options = [f"model.{k}={v}" for k, v in MODEL.items()] + [f"train.{k}={v}" for k, v in TRAIN.items()]
    options += [f"train.steps={steps}", "train.nodes=1", "train.nproc=4"]
    words = [word for option in options for word in ("--set", option)]
    done = place.call("train", "--data", dataset, "--out", "s3://gptpipe/alone", "--json", *words)
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout)
    assert alone["training"].rsplit("/", 1)[1] == training.rsplit("/", 1)[1]  # the same training by its id
    return weights(place, alone["training"], steps)


def trained(place: Place, run: str) -> str:
    """The folder of the training that a finished run has made."""
    lines = [line for line in place.said().splitlines() if line.startswith("train: ") and "steps, s3://" in line]
    return lines[-1].split(", ", 1)[1].rsplit("/", 1)[0]


def slots(place: Place) -> int:
    """Slots of nodes that are taken."""
    limits = place.prefect("v2/concurrency_limits/filter", {})
    return sum(limit["active_slots"] for limit in limits if limit["name"] == "gptpipe-nodes")


def test_a_cut_cable_ends_both_sides_and_when_it_is_mended_the_run_goes_on(place: Place) -> None:
    run = place.press_run("retrain/on-demand", **wanted(place, steps=150))
    place.wait_for_step(12, 150)
    assert len(place.ranks()) == 4
    peers = {c.raddr.ip for rank in place.ranks().values() for c in rank.net_connections("tcp") if c.raddr}
    assert any(THERE in peer for peer in peers)  # over the cable, not over the loopback
    ip("-n", SPACE, "link", "set", FAR, "down")
    cut = time.monotonic()
    wait_until(lambda: not place.ranks(), 9, "the end of both sides")
    assert time.monotonic() - cut < 7.5
    place.wait_for_words("attempt 1 ended", 20)
    assert f"({THERE}) is silent for 5 s" in place.said()
    time.sleep(5)
    assert place.state(run)["type"] == "RUNNING"
    ip("-n", SPACE, "link", "set", FAR, "up")
    place.wait_for(run, "COMPLETED", 240)
    assert "training going on from step" in place.said()
    assert weights(place, trained(place, run), 150) == undisturbed(place, run, 150)
    assert slots(place) == 0


def test_a_killed_machine_is_replaced(place: Place) -> None:
    run = place.press_run("retrain/on-demand", **wanted(place, steps=151))
    place.wait_for_step(12, 151)
    worker = place.workers.pop()
    family = psutil.Process(worker.pid).children(recursive=True)
    others = {pid: rank for pid, rank in place.ranks().items() if pid not in {each.pid for each in family}}
    assert len(others) == 2
    for each in [*family, psutil.Process(worker.pid)]:
        with suppress(psutil.Error):
            each.kill()
    began = time.monotonic()
    wait_until(lambda: not place.ranks(), 6, "the gang's end")
    assert time.monotonic() - began < 5
    start_b(place)
    wait_until(lambda: len(place.ranks()) == 4, 45, "ranks once more")
    place.wait_for(run, "COMPLETED", 240)
    assert weights(place, trained(place, run), 151) == undisturbed(place, run, 151)


def test_cancelled_by_the_api_nothing_is_left_every_time(place: Place) -> None:
    took = []
    for number in range(20):
        run = place.press_run("retrain/on-demand", **wanted(place, steps=100_000 + number))
        wait_until(lambda: len(place.ranks()) == 4, 90, "four ranks")
        time.sleep(number % 7)  # importing, meeting, training, saving
        place.cancel(run)
        took.append(wait_until(lambda: not place.ranks(), 20, "the last rank's end"))
        place.wait_for(run, "CANCELLED", 60)
        wait_until(lambda: slots(place) == 0, 10, "free slots")
    print("cancel to the last rank gone:", sorted(round(seconds, 2) for seconds in took))
    assert max(took) <= 3


def test_a_gang_goes_on_while_the_prefect_server_is_away(place: Place) -> None:
    run = place.press_run("retrain/on-demand", **wanted(place, steps=100_100))
    place.wait_for_step(5, 100_100)
    ranks = place.ranks()
    place.hang_prefect_server(30)
    assert place.ranks().keys() == ranks.keys()
    place.cancel(run)
    assert wait_until(lambda: not place.ranks(), 20, "the last rank's end") < 5
    place.wait_for(run, "CANCELLED", 60)
    wait_until(lambda: slots(place) == 0, 10, "free slots")


def test_a_machine_that_goes_away_saves_and_the_run_goes_on(place: Place) -> None:
    run = place.press_run("retrain/on-demand", **wanted(place, steps=400, checkpoint_every=300))
    place.wait_for_step(8, 400)
    worker = place.workers.pop()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(60) == 0
    start_b(place)
    place.wait_for(run, "COMPLETED", 240)
    said = place.said()
    assert "this host goes away; saving" in said
    assert "training going on from step" in said


def test_two_trainings_wait_for_each_other_and_never_hold_half(place: Place) -> None:
    runs = [place.press_run("retrain/on-demand", **wanted(place, steps=60 + number)) for number in range(2)]
    for run in runs:
        place.wait_for(run, "COMPLETED", 300)
    assert "other trainings hold them" in place.said()
    assert slots(place) == 0


def test_more_nodes_than_there_are_workers_is_said_with_what_to_do(place: Place) -> None:
    run = place.press_run("retrain/on-demand", **wanted(place, steps=70, nodes=4))
    wait_until(lambda: "waiting for 4 nodes" in place.said(), 40, "a word")
    line = next(line for line in place.said().splitlines() if "waiting for 4 nodes" in line)
    assert "2 workers online in pool gptpipe-nodes (A, B)" in line
    assert "infra/gpu-worker.sh" in line
    place.cancel(run)
    place.wait_for(run, "CANCELLED", 60)
