"""The ways a training ends: preempted, cancelled, refused, failed, and that one folder has one writer."""

from __future__ import annotations

import base64
import os
import pickle
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import TCPStore

from gptpipe.launch.torchrun import last_words
from gptpipe.weights.checkpoint import list_checkpoints, newest_checkpoint
from tests.fixtures.trainings import NewTraining, Training, kill

LONG = {"steps": 100_000, "checkpoint_every": 100_000, "validate_every": 0}


def folder_of(training: Training) -> str:
    (folder,) = (training.folder / "out").glob("*")
    return str(folder)


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_a_pickle_from_another_user_of_the_machine_is_not_run(new_training: NewTraining, tmp_path: Path) -> None:
    """torchrun's own meeting unpickles its state every five seconds, from a port that is open to every machine."""
    training = new_training("attacked", train={"steps": 100_000, "validate_every": 0, "checkpoint_every": 1000})
    process = training.start()
    training.wait_for_step(2)
    planted = base64.b64encode(pickle.dumps(Planted(tmp_path / "planted")))
    connections = [each for process in training.family() for each in process.net_connections("tcp")]
    listening = {each.laddr for each in connections if each.status == psutil.CONN_LISTEN}
    assert {each.ip for each in listening} == {"127.0.0.1"}
    stores = 0
    for _, port in listening:
        with suppress(RuntimeError):  # not every port is a store's
            store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=3), wait_for_workers=False)
            store.set("torch.rendezvous.none", planted.decode())
            stores += 1
    assert stores == 1
    time.sleep(7)
    assert not (tmp_path / "planted").exists()
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 75


@pytest.mark.slow
@pytest.mark.parametrize(("nproc", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_saves_and_ends_resumable(new_training: NewTraining, nproc: int, number: int) -> None:
    training = new_training("long", train={**LONG, "nproc": nproc})
    process = training.start()
    training.wait_for_step(5)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 75, err
    assert "run again to go on" in out
    saved = newest_checkpoint(folder_of(training))
    assert saved is not None
    assert saved.step >= 5
    process = training.start()
    training.wait_for_step(saved.step + 3)
    assert f"going on from step {saved.step}" in _stop(process)


@pytest.mark.slow
def test_a_signal_that_comes_while_the_ranks_start_is_not_lost(new_training: NewTraining) -> None:
    training = new_training("early", train={**LONG, "nproc": 2})
    process = training.start()
    while not training.ranks():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 75, err


def _stop(process: object) -> str:
    import subprocess

    assert isinstance(process, subprocess.Popen)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=900)
    assert isinstance(err, str)
    return err


@pytest.mark.slow
def test_where_torchrun_itself_is_killed_it_goes_on_by_itself(new_training: NewTraining) -> None:
    training = new_training("torchrun", train={"steps": 400, "checkpoint_every": 20})
    process = training.start()
    training.wait_for_step(40)
    (launcher,) = [each for each in training.family() if "torch.distributed.run" in each.cmdline()]
    launcher.kill()
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert "torchrun was killed by signal 9; once more from" in err
    assert training.family() == []


@pytest.mark.slow
def test_max_hours_ends_resumable(new_training: NewTraining) -> None:
    training = new_training("hours", train={**LONG, "max_hours": 4 / 3600})
    process = training.start()
    out, err = process.communicate(timeout=900)
    assert process.returncode == 75, err
    assert "max_hours is used up" in out


@pytest.mark.slow
def test_a_second_signal_cancels_within_two_seconds(new_training: NewTraining) -> None:
    training = new_training("cancel", train={**LONG, "nproc": 2})
    process = training.start()
    training.wait_for_step(3)
    family = training.family()
    for rank in training.ranks():
        rank.suspend()  # they cannot save
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert not psutil.wait_procs([each for each in family if each.pid != process.pid], timeout=30)[1]
    assert time.monotonic() - began < 2 + 1  # a second for a busy machine; the launcher itself has Python to end
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert newest_checkpoint(folder_of(training)) is None


@pytest.mark.slow
def test_ranks_that_cannot_save_in_time_are_ended(new_training: NewTraining) -> None:
    training = new_training("stuck", train={**LONG, "save_timeout": 1.0})
    process = training.start()
    training.wait_for_step(3)
    family = training.family()
    for rank in training.ranks():
        rank.suspend()
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "not saved within train.save_timeout" in out
    assert not psutil.wait_procs(family, timeout=5)[1]


@pytest.mark.slow
def test_a_training_whose_rank_is_killed_goes_on_by_itself(new_training: NewTraining) -> None:
    undisturbed = new_training("undisturbed", train={"steps": 60, "checkpoint_every": 10})
    undisturbed.finish()
    training = new_training("killed", train={"steps": 60, "checkpoint_every": 10})
    process = training.start()
    training.wait_for_step(12)
    kill(training.ranks())
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert re.search(r"rank 0 was killed by signal 9; once more from step [1-5]0\n", err)  # memory had no part in it
    assert training.weights() == undisturbed.weights()


@pytest.mark.slow
def test_a_rank_that_is_killed_each_time_ends_the_training(new_training: NewTraining) -> None:
    training = new_training("oom", train={**LONG, "nproc": 2})
    process = training.start()
    seen: set[int] = set()
    for _ in range(3):
        until = time.monotonic() + 60
        while len(fresh := [rank for rank in training.ranks() if rank.pid not in seen]) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(1)
        seen |= {rank.pid for rank in fresh}
        kill(fresh[1:])
    out, err = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "killed by signal 9" in out
    assert "memory" not in out.splitlines()[0]
    assert err.count("once more from the beginning") == 2


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_was_asked_to_save_is_not_started_again(new_training: NewTraining) -> None:
    training = new_training("stopped", train=LONG)
    process = training.start()
    training.wait_for_step(3)
    (rank,) = training.ranks()
    rank.suspend()  # so that it is killed before it has saved
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(1)
    rank.kill()
    out, err = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "killed by signal 9" in out
    assert "once more from" not in err


@pytest.mark.slow
def test_nothing_of_the_current_folder_is_imported_and_nothing_is_left_in_the_temporary_one(
    new_training: NewTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's random.py took the place of Python's in torchrun and its ranks."""
    for name in ("random", "json", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(temporary))
    training = new_training("beside", train={"steps": 6})
    training.finish()
    process = training.start()
    process.communicate(timeout=900)
    assert not list(temporary.glob("torchelastic_*"))


def test_ranks_that_cannot_speak_are_quoted() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "/somewhere/rank.py", line 3, in <module>',
        "ModuleNotFoundError: No module named 'nothing'",
        "E1127 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1) local_rank: 0",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "============",
    ]
    assert last_words(lines) == "ModuleNotFoundError: No module named 'nothing'"
    assert last_words(["Illegal instruction"]) == "Illegal instruction"
    assert last_words([]) == "nothing"


@pytest.mark.slow
def test_one_folder_has_one_writer(new_training: NewTraining) -> None:
    training = new_training("leased", train=LONG)
    first = training.start()
    training.wait_for_step(2)
    second = training.start()
    out, _ = second.communicate(timeout=900)
    assert second.returncode == 2
    assert f"(process {first.pid}) is writing here" in out


@pytest.mark.parametrize(
    "seconds", [0.3, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.0, 0.6, 0.9, 1.2))]
)
def test_a_launcher_that_is_killed_while_torchrun_starts_leaves_nothing(
    new_training: NewTraining, seconds: float
) -> None:
    """Nobody is at the store any more at which torchrun meets; it would look for it for a minute."""
    training = new_training("at the start", train=LONG)
    process = training.start()
    until = time.monotonic() + 120
    while not (family := [each for each in training.family() if "torch.distributed.run" in _words(each)]):
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(seconds)
    family = training.family()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_ranks_end_with_a_launcher_that_nobody_waits_for(new_training: NewTraining) -> None:
    """As in a container whose first process does not: it is dead, and stays in the table of processes."""
    training = new_training("unwaited", train=LONG)
    process = training.start()
    training.wait_for_step(3)
    ranks = training.ranks()
    os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks):
        assert time.monotonic() < until, "a rank outlived its launcher"
        time.sleep(0.05)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    again = training.start()
    while not training.ranks():  # another writer may come at once
        assert again.poll() is None, again.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_dead_writer_is_replaced_at_once(new_training: NewTraining) -> None:
    training = new_training("dead", train={"steps": 6})
    training.start()
    training.wait_for_step(1)
    kill(training.family())
    assert Path(folder_of(training), "lease.json").exists()
    began = time.monotonic()
    training.finish()
    assert time.monotonic() - began < 45
    assert not Path(folder_of(training), "lease.json").exists()


@pytest.mark.parametrize(
    ("train", "model", "message"),
    [
        ({}, {"context_length": 100_000}, "fewer than the context"),
        ({}, {"vocab_size": 300}, "model.vocab_size: the model has 300 tokens"),
        ({"nproc": 2, "batch_size": 1}, {}, "2 ranks share a batch of 1"),
    ],
)
def test_what_cannot_be_trained_is_said_before_a_rank_starts(
    new_training: NewTraining, train: dict[str, int], model: dict[str, int], message: str
) -> None:
    training = new_training("bad", train=train, model=model)
    out, _ = training.start().communicate(timeout=900)
    assert training.started[-1].returncode == 2
    assert message in out
    assert out.count("\n") == 1
    assert not list(training.folder.glob("home/jobs/*/rank-*.pid"))


def flipped(content: bytes) -> bytes:
    """A bit in the middle."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 0x10]) + content[half + 1 :]


def damage(file: Path) -> None:
    file.write_bytes(flipped(file.read_bytes()))


def test_a_finished_training_of_which_a_part_is_damaged_is_put_right_with_the_same_bits(
    new_training: NewTraining,
) -> None:
    training = new_training("finished", train={"steps": 16, "checkpoint_every": 4})
    first, weights = training.finish(), training.weights()
    folder = Path(folder_of(training))
    last, best = (Path(first[name]) for name in ("checkpoint", "best_checkpoint"))
    kept = {file: file.read_bytes() for file in (*last.iterdir(), folder / "outcome.json")}
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = folder / f".tmp-{socket.gethostname()}-{ended.pid}-0123abcd-metrics.jsonl"  # by a process that was killed
    left.touch()
    for file, content in (
        (last / "model.safetensors", kept[last / "model.safetensors"][:100]),
        (last / "optimizer.safetensors", b""),
        (last / "model.safetensors", flipped(kept[last / "model.safetensors"])),
        (best / "config.json", flipped((best / "config.json").read_bytes())),
        (best / "state.json", None),
        (folder / "outcome.json", b"{"),
        (folder / "outcome.json", kept[folder / "outcome.json"].replace(b'"step": 16', b'"step": 12')),
    ):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        result, said = training.finish_and_listen()
        assert str(file) in said, "it is named"
        assert training.weights() == weights
        assert {**result, "tokens_per_second": 0} == {**first, "tokens_per_second": 0}
        result, said = training.finish_and_listen()
        assert (result["already_done"], str(file) in said) == (True, False)
    assert not left.exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_an_earlier_one_or_the_beginning(
    new_training: NewTraining,
) -> None:
    undisturbed = new_training("undisturbed", train={"steps": 12})
    undisturbed.finish()
    for name, every in (("optimizer.safetensors", False), ("state.json", False), ("model.safetensors", True)):
        training = new_training(f"damaged-{name}", train={"steps": 12})
        training.start()
        training.wait_for_step(8)
        kill(training.family())
        newest, *earlier = reversed(list_checkpoints(folder_of(training)))
        assert earlier
        for checkpoint in [newest, *(earlier if every else [])]:
            damage(Path(checkpoint.url) / name)
        process = training.start()
        out, said = process.communicate(timeout=900)
        place = "the beginning" if every else f"step {earlier[0].step}"
        goes_on = f"the checkpoint is passed over, training goes on from {place}"
        last = earlier[-1] if every else newest
        assert said.count(f"{last.url}/{name}: damaged: its size or SHA-256 is not what it should be; {goes_on}") == 1
        assert process.returncode == 0, out + said
        assert training.weights() == undisturbed.weights()
