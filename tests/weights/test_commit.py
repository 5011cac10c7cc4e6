"""Which checkpoints of a training are kept, and that what a kill left of one goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptpipe import GPT, ModelConfig, storage
from gptpipe.weights.checkpoint import list_checkpoints, newest_checkpoint
from gptpipe.weights.commit import finish_removals, prune, write_checkpoint
from gptpipe.weights.huggingface import hf_config, hf_tensors

MODEL = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=20, context_length=4))


def write(training: str, *steps: int) -> None:
    for step in steps:
        config = hf_config(MODEL.config, "gpt2", 19)
        write_checkpoint(training, step, model=hf_tensors(MODEL), config=config, state={})


@pytest.fixture(params=["a folder", pytest.param("an object store", marks=pytest.mark.stack)])
def training(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "a folder":
        return str(tmp_path / "training")
    return f"{request.getfixturevalue('s3_storage')}/training"


def test_the_last_ones_and_the_best_are_kept(training: str) -> None:
    write(training, 2, 4, 6, 8)
    assert prune(training, 2, best_step=2) == [4]
    assert [checkpoint.step for checkpoint in list_checkpoints(training)] == [2, 6, 8]
    assert prune(training, 2, best_step=2) == []


def test_what_a_kill_left_of_one_goes_when_a_training_goes_on(training: str) -> None:
    """A removal that was broken off; one that is damaged, or newer than all, is somebody's evidence or work."""
    write(training, 2, 4, 6, 8, 10)
    for step in (2, 10):
        storage.remove(storage.join(training, f"step-{step:08d}", "manifest.json"))
    storage.write_bytes(storage.join(training, "step-00000004", "manifest.json"), b"{")
    newest = newest_checkpoint(training)
    assert newest is not None
    assert newest.step == 8
    finish_removals(newest)
    files = {entry.path.split("/")[0] for entry in storage.list_files(training)}
    assert files == {"step-00000004", "step-00000006", "step-00000008", "step-00000010"}
