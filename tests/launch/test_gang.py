"""Several nodes, each a process tree of its own on this machine: joined, killed, frozen, refused."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptpipe import __version__, storage
from gptpipe.config import DataConfig, ModelConfig, TrainConfig
from gptpipe.corpus.build import tokenize
from gptpipe.errors import UserError
from gptpipe.launch import gang, node
from gptpipe.launch import training as launch
from gptpipe.launch.channel import SILENCE_SECONDS, Channel, Invitation, Refused
from gptpipe.launch.job import Job
from gptpipe.launch.messages import About, Line
from tests.fixtures.neighbours import Neighbours
from tests.fixtures.place import wait_until
from tests.fixtures.trainings import MODEL, TRAIN, NewTraining, Training, kill, text_of


def nodes_of(training: Training) -> list[psutil.Process]:
    return [process for process in training.family() if "gptpipe.node" in process.cmdline()]


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_two_nodes_come_to_the_bits_of_one_machine_with_as_many_ranks(new_training: NewTraining, nproc: int) -> None:
    alone = new_training("alone", train={"nproc": 2 * nproc})
    alone.finish()
    two = new_training("two", train={"nproc": nproc, "nodes": 2})
    _, log = two.finish_and_listen()
    assert "training on 2 nodes" in log
    assert f"{2 * nproc} ranks" in log
    assert two.weights() == alone.weights()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_node_that_is_lost_ends_the_gang_and_the_next_attempt_has_the_same_bits(
    new_training: NewTraining, how: signal.Signals
) -> None:
    """Killed it closes the link, frozen it falls silent as if the cable were cut, asked to stop it saves."""
    undisturbed = new_training("undisturbed", train={"nproc": 2, "steps": 120})
    undisturbed.finish()
    training = new_training("disturbed", train={"nodes": 2, "steps": 120})
    process = training.start()
    training.wait_for_step(7)
    first, second = nodes_of(training)
    others = tree(first)[1:]
    if how == signal.SIGKILL:
        kill(tree(second))
    elif how == signal.SIGSTOP:
        for each in tree(second):
            each.suspend()
    else:
        second.terminate()
    took = wait_until(lambda: not any(map(lives, others)), 12, "the gang's end")
    assert took < SILENCE_SECONDS + 2
    if how == signal.SIGSTOP:
        frozen = tree(second)
        for each in frozen:
            each.resume()  # the cable is mended: the node from the old attempt ends by itself
        wait_until(lambda: not any(map(lives, frozen)), 10, "the end of the old attempt's node")
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert "attempt 1 ended" in err
    if how == signal.SIGKILL:
        assert "a node ended with -9" in err
    assert training.weights() == undisturbed.weights()


@pytest.mark.slow
def test_a_rank_that_the_system_kills_is_named_with_why(new_training: NewTraining) -> None:
    training = new_training("out of memory", train={"nodes": 2, "steps": 120})
    process = training.start()
    training.wait_for_step(7)
    kill(training.ranks()[:1])
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert re.search(r"attempt 1 ended: rank [01] was killed by signal 9; once more", err)


@pytest.mark.slow
def test_with_min_nodes_it_goes_on_without_one_that_does_not_come(new_training: NewTraining) -> None:
    alone = new_training("alone")
    alone.finish()
    short = new_training("short", train={"nodes": 2, "min_nodes": 1}, absent=1)
    _, log = short.finish_and_listen()
    assert "going on with 1 node of 2" in log
    assert "training on 1 node" in log
    assert short.weights() == alone.weights()


@pytest.mark.slow
def test_cancelled_it_leaves_no_process(new_training: NewTraining) -> None:
    training = new_training("cancelled", train={"nodes": 2, "steps": 4000})
    process = training.start()
    training.wait_for_step(5)
    family = training.family()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not any(map(lives, family[1:])), 10, "all gone")
    process.communicate(timeout=20)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_node_without_the_stores_keys_is_named_and_nothing_is_trained(s3_storage: str, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(text_of(number))
    data = tokenize(DataConfig(corpus=[str(tmp_path)], validation=0.2), f"{s3_storage}/datasets").dataset
    hosts = Neighbours(environment={1: {"GPTPIPE_S3_SECRET_KEY": "another"}})
    config = TrainConfig(**{**TRAIN, "nodes": 2})
    with pytest.raises(UserError, match=f"{socket.gethostname()}: .*GPTPIPE_S3") as refused:
        launch.train(ModelConfig(**MODEL), config, data=data, out=f"{s3_storage}/trainings", hosts=hosts)
    assert "\n" not in str(refused.value)
    assert not [name for name in storage.list_folders(f"{s3_storage}/trainings") if "step" in name]


@pytest.fixture
def pair() -> Any:
    """Two ends of a TCP connection."""
    door = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(door.getsockname())
    far, _ = door.accept()
    door.close()
    yield near, far
    near.close()
    far.close()


def test_whoever_does_not_know_the_token_is_refused_by_either_side(pair: Any) -> None:
    near, far = pair
    said: list[str] = []

    def invite() -> None:
        with pytest.raises(Refused, match="does not know this attempt's token"):
            Channel(far).invite("this attempt's")
        said.append("refused")

    thread = threading.Thread(target=invite)
    thread.start()
    with pytest.raises(Refused, match="this attempt is over"):
        Channel(near).greet("an old one's", About(name="back again", version=__version__))
    thread.join()
    assert said == ["refused"]


def test_a_parent_that_does_not_know_the_token_gets_no_node(pair: Any) -> None:
    near, far = pair

    def pretend() -> None:
        far.sendall(b'{"challenge": "0"}\n')
        far.recv(1000)
        far.sendall(b'{"answer": "made up"}\n')

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(Refused, match="whoever listens there"):
        Channel(near).greet("the token", About(name="b", version=__version__))
    thread.join()


def test_silence_ends_the_link_and_closing_ends_it_at_once(pair: Any) -> None:
    near, far = pair
    listening = Channel(near)
    listening.start()
    far.sendall(b'{"kind": "line", "line": "hello"}\n{}\n')
    assert listening.received.get(timeout=2) == Line(line="hello")
    took = wait_until(lambda: listening.lost, 8, "silence")
    assert SILENCE_SECONDS - 1 < took < SILENCE_SECONDS + 1
    assert listening.lost == "silent for 5 s"


@pytest.mark.slow
def test_two_ends_that_live_hear_each_other_for_longer_than_the_silence(pair: Any) -> None:
    ends = [Channel(each) for each in pair]
    for end in ends:
        end.start()
    time.sleep(SILENCE_SECONDS + 1)
    assert [end.lost for end in ends] == ["", ""]
    ends[0].close()
    assert wait_until(lambda: ends[1].lost, 2, "the reset") < 1
    assert ends[1].lost == "closed by the other side"


ABOUT = About(name="b", address="10.0.0.2", version=__version__)


@pytest.mark.parametrize(
    ("theirs", "others", "device", "said"),
    [
        ({"version": "0.0.1"}, [], "cpu", rf"node b has gptpipe 0\.0\.1, the training's parent {__version__}"),
        ({"torch": "1.0"}, [], "cpu", r"node b has torch 1\.0"),
        ({}, [], "cuda", "node b has 0 GPUs for 1 rank"),
        ({}, [ABOUT.model_copy(update={"name": "a", "gpus": 8})], "auto", "node b has 0 GPUs for 1 rank"),
        ({"gpus": 8}, [ABOUT.model_copy(update={"name": "a"})], "auto", "node b has GPUs, node a has none"),
        ({"skew": -75.0}, [], "cpu", "the clock of node b is 75 s behind"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_by_name(
    theirs: dict[str, Any], others: list[About], device: str, said: str, tmp_path: Path
) -> None:
    job = Job(
        id="0",
        model=ModelConfig(),
        train=TrainConfig(device=device),  # type: ignore[arg-type]
        training="",
        dataset="",
        folder=tmp_path,
        cache=tmp_path,
        cache_bytes=0,
        launcher=1,
    )
    about = ABOUT.model_copy(update={"torch": node.about_this_node().torch})
    if device == "cpu":
        gang.check_member(about, [], job)
    with pytest.raises(UserError, match=said):
        gang.check_member(about.model_copy(update=theirs), others, job)


def test_a_parent_that_cannot_be_reached_is_named() -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    invitation = Invitation(host="127.0.0.1", port=port, attempt=1, token="t", training="")
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: .* cannot reach the training's parent"):
        node.join(invitation, is_cancelled=lambda: False)


def test_ports_that_are_all_taken_are_named() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    ports = range(port, port + 1)
    with pytest.raises(UserError, match=f"GPTPIPE_GANG_PORTS={port}-{port}: no port is free"):
        gang.listen("127.0.0.1", ports)
    taken.close()
    gang.listen("127.0.0.1", ports).close()
    with pytest.raises(UserError, match="not an address of this machine"):
        gang.listen("192.0.2.1", ports)


def test_several_nodes_without_a_server_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.nodes=3: several nodes need a Prefect server"):
        launch.train(ModelConfig(**MODEL), TrainConfig(batch_size=6, nodes=3), data=dataset, out=str(tmp_path))
