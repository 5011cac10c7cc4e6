"""Checkpoints in the background: what was copied stays, one at a time, failures are tried again and reported."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.train.saver import HostCopies, Saver
from gptpipe.weights.checkpoint import open_checkpoint
from gptpipe.weights.commit import write_checkpoint
from tests.fixtures.gpu import Streams


def test_copies_stay_as_they_were_and_reuse_their_memory() -> None:
    copies = HostCopies(torch.device("cpu"))
    weight, turned = torch.randn(4, 6), torch.randn(3, 5)
    first = copies.take({"a": weight, "b": turned.t()}).tensors
    kept = weight.clone()
    weight.add_(1)
    assert torch.equal(first["a"], kept)
    assert torch.equal(first["b"], turned.t())
    assert first["b"].is_contiguous()
    assert copies.take({"a": weight}).tensors["a"].data_ptr() == first["a"].data_ptr()


def test_from_a_gpu_only_what_writes_to_the_weights_waits_for_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    copies = HostCopies(torch.device("cuda"))
    weight = torch.randn(4, 6)
    copies.hold_update()  # of a step before the first save: there is nothing to wait for
    copies.reserve({"a": weight})
    place = copies.take({"a": weight})
    copied = [("aside", "waits for here"), ("aside", "copy"), ("aside", "event")]
    assert streams.done == copied  # neither the host nor the stream of the next step's passes
    copies.hold_update()
    copies.hold_update()  # of the step after: that is over
    place.ready()
    waits = "waits for the event of aside"
    assert streams.done == [*copied, ("here", waits), ("host", waits)]
    assert torch.equal(place.tensors["a"], weight)
    assert copies.take({"a": weight}).tensors["a"].data_ptr() == place.tensors["a"].data_ptr()


def test_the_caller_goes_on_and_waits_for_the_one_before() -> None:
    saver, gate, done = Saver(), threading.Event(), []

    def slow() -> None:
        gate.wait(5)
        done.append("first")

    saver.start(slow, "checkpoint 1")
    assert not done
    threading.Timer(0.2, gate.set).start()
    saver.wait()
    assert done == ["first"]
    saver.start(lambda: done.append("second"), "checkpoint 2")
    saver.wait()
    assert done == ["first", "second"]


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_what_fails_is_tried_again_then_reported(failures: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    saver, tries = Saver(attempts=3, pause=0.01), []

    def upload() -> None:
        tries.append(time.monotonic())
        if len(tries) <= failures:
            raise UserError("the object store did not answer", where="s3://bucket", hint="start it")

    saver.start(upload, "checkpoint 7")
    saver.wait()
    said = [record.message for record in caplog.records]
    assert len(tries) == min(3, failures + 1)
    if failures == 3:
        assert said[-1].startswith("checkpoint 7 not saved, training goes on: s3://bucket: the object store did not")
        assert isinstance(saver.failed, UserError)
    else:
        assert "trying again" in said[0] or not failures
        assert said[-1].startswith("checkpoint 7 in ")
        assert saver.failed is None
    saver.start(lambda: None, "checkpoint 8")  # the next is as welcome
    saver.wait()
    assert saver.failed is None


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "wte.weight": torch.randn(7, 5, generator=draw),
        "turned": torch.randn(3, 4, generator=draw).t(),
        "step": torch.tensor(3.0),
        "half": torch.randn(9, generator=draw).bfloat16(),
        "ids": torch.arange(11),
        "none": torch.empty(0, 4),
    }


@pytest.mark.parametrize("place", ["folder", "store"])
def test_a_written_file_is_what_the_library_reads(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    where = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_storage")
    written = write_checkpoint(where, 5, model=tensors(), config={"a": 1}, optimizer=tensors(), state={"step": 5})
    found = open_checkpoint(written.url)
    assert found is not None
    content = found.read("model.safetensors")
    for name, value in safetensors.torch.load(content).items():
        assert value.dtype == tensors()[name].dtype
        assert torch.equal(value, tensors()[name])
    assert set(safetensors.torch.load(content)) == set(tensors())
    turned = dict(reversed(tensors().items()))
    again = write_checkpoint(where, 6, model=turned, config={"a": 1})
    assert again.model_sha256 == written.model_sha256  # whatever order they come in
    local = tmp_path / "copy.safetensors"
    local.write_bytes(content)
    with safetensors.safe_open(local, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert found.json("state.json") == {"step": 5}


def break_off(url: str) -> None:
    with storage.open_write(url) as out:
        out.write(bytes(40 << 20))  # more than a part of an upload
        raise ZeroDivisionError


def test_a_stream_that_breaks_off_leaves_what_was_there(tmp_path: Path, s3_storage: str) -> None:
    for url in (str(tmp_path / "file"), f"{s3_storage}/file"):
        storage.write_bytes(url, b"before")
        with pytest.raises(ZeroDivisionError):
            break_off(url)
        assert storage.read_bytes(url) == b"before"
        with storage.open_write(url) as out:
            for _ in range(5):
                out.write(bytes(8 << 20))
        assert storage.read_bytes(url) == bytes(40 << 20)
