"""A run that was killed ends with the bits of one that was not; ranks and accumulation do not change the result."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.trainings import NewTraining, Training, kill

QWEN3 = {"architecture": "qwen3", "n_head": 4, "n_kv_head": 2, "dropout": 0.0}


def killed_and_resumed(training: Training, kills: int, seed: int) -> None:
    """Kill everything at random instants, each a few steps on, and let it finish after the last."""
    chance = random.Random(seed)
    for number in range(kills):
        process = training.start()
        if process.poll() is None:
            step = training.steps_logged()
            steps = training.train["steps"]
            if step < steps - 2:
                training.wait_for_step(min(steps - 1, step + chance.randint(0, 3)))
                time.sleep(chance.random() * 0.1)
            victims = training.family()
            kind = number % 4
            if kind == 1 and training.ranks():  # one rank alone: torchrun and the launcher see it and end
                kill([chance.choice(training.ranks())])
                process.communicate(timeout=900)
            elif kind == 2:  # the launcher alone: the ranks must end with it
                kill(victims[:1])
                process.communicate(timeout=900)
                until = time.monotonic() + 20
                while any(victim.is_running() and victim.status() != "zombie" for victim in victims):
                    assert time.monotonic() < until, "a rank outlived its launcher"
                    time.sleep(0.05)
            elif kind == 3:  # preempted: it saves where it is
                while process.poll() is None and not training.ranks():  # before that, Python itself just ends
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=900)
                assert process.returncode in (0, 75)
            else:
                kill(victims)
    training.finish()


@pytest.mark.slow  # the ordinary run has one in tests/chaos
@pytest.mark.parametrize(
    ("nproc", "more", "model"),
    [(1, {}, {}), (2, {}, {}), (3, {}, {}), (1, {}, QWEN3), (2, {"optimizer": "muon"}, QWEN3), (4, {}, QWEN3)],
)
def test_killed_runs_end_with_the_same_bits(
    new_training: NewTraining, nproc: int, more: dict[str, Any], model: dict[str, Any]
) -> None:
    settings = {"nproc": nproc, "steps": 16, **more}
    undisturbed = new_training("undisturbed", train=settings, model=model)
    undisturbed.finish()
    killed = new_training("killed", train=settings, model=model)
    killed_and_resumed(killed, 1, seed=nproc)
    assert killed.weights() == undisturbed.weights()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nproc", "more"), [(1, {"micro_batch": 3}), (2, {"optimizer": "muon", "spike_action": "skip"}), (4, {})]
)
def test_thirty_kills_end_with_the_same_bits(new_training: NewTraining, nproc: int, more: dict[str, Any]) -> None:
    """A checkpoint at every step is always being written somewhere in the background."""
    settings = {"nproc": nproc, "steps": 120, "checkpoint_every": 1, "validate_every": 40, **more}
    undisturbed = new_training("undisturbed", train=settings)
    undisturbed.finish()
    killed = new_training("killed", train=settings)
    killed_and_resumed(killed, 30, seed=100 + nproc)
    assert killed.weights() == undisturbed.weights()


def losses(training: Training) -> list[float]:
    (file,) = (training.folder / "out").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # each step once
    return [line["train/loss"] for line in lines]


@pytest.mark.slow
def test_two_ranks_agree_with_accumulation(new_training: NewTraining) -> None:
    runs: dict[str, dict[str, Any]] = {
        "one": {},
        "accumulated": {"micro_batch": 4},
        "two": {"nproc": 2},
        "both": {"nproc": 2, "micro_batch": 1},
    }
    found = {}
    for name, change in runs.items():
        training = new_training(name, train={"steps": 20, **change}, model={"dropout": 0.0})
        training.finish()
        found[name] = losses(training)
    for name in ("accumulated", "two", "both"):
        assert found[name] == pytest.approx(found["one"], rel=1e-5), name


@pytest.mark.slow
def test_another_world_size_goes_on_with_the_same_samples(new_training: NewTraining) -> None:
    """A loss of its own for each step: a sample left out or read twice would show."""
    undisturbed = new_training("undisturbed", train={"steps": 40}, model={"dropout": 0.0})
    undisturbed.finish()
    moved = new_training("moved", train={"steps": 40, "checkpoint_every": 4}, model={"dropout": 0.0})
    for number, nproc in enumerate((1, 2, 4)):
        moved.train["nproc"] = nproc
        moved.start()
        moved.wait_for_step(6 + 10 * number)
        kill(moved.family())
    moved.train["nproc"] = 1
    moved.finish()
    assert losses(moved) == pytest.approx(losses(undisturbed), rel=1e-5)


@pytest.mark.slow
def test_metrics_and_outcome_stand_beside_the_checkpoints(new_training: NewTraining) -> None:
    training = new_training("plain")
    result = training.finish()
    folder = Path(result["training"])
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["status"] == "finished"
    assert outcome["step"] == result["steps"] == 24
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/loss" in line] == [8, 16, 24]
    assert lines[-1]["validation/loss"] == result["validation_loss"]
    # the last two and the best are kept
    kept = sorted(path.name for path in folder.glob("step-*"))
    assert kept[-2:] == ["step-00000021", "step-00000024"]
    assert len(kept) <= 3
    again = training.finish()
    assert again == {**result, "already_done": True}
