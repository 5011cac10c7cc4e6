"""The memory per step is said to take beforehand, against what it takes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptpipe.config import ModelConfig
from gptpipe.model.gpt import GPT
from gptpipe.train.budget import MemoryBudget
from tests.fixtures.trainings import NewTraining


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("half", [False, True])
def test_a_block_keeps_what_is_predicted(half: bool, dropout: float) -> None:
    config = ModelConfig(vocab_size=100, n_layer=3, n_head=2, n_embd=64, context_length=32, dropout=dropout)
    model = GPT(config)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros((4, 32), dtype=torch.int64)
    x = model.drop(model.wte(tokens) + model.wpe(tokens)).detach().requires_grad_()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        for block in model.h:
            x = block(x)
    found = sum(storage.nbytes() for storage in kept.values())
    predicted = 4 * 32 * MemoryBudget.of_block(config, 2 if half else 4, "cpu") * 3
    # means and deviations of the norms, maxima of the attention: some numbers per token
    assert predicted <= found <= predicted + 4 * 32 * 3 * 4 * (2 * 2 + config.n_head)


# What Python runs when a process starts: writes down how many bytes are allocated, before the model and at most.
WATCH = """
import ctypes, os, sys, threading, time

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

def watch():
    count = ctypes.CDLL(None).mallinfo2
    count.restype = Info
    before = most = latest = 0
    while True:
        info = count()
        now = info.uordblks + info.hblkhd
        ready = hasattr(sys.modules.get("gptpipe.train.setup"), "set_up")
        if not before and ready and now - latest > 50e6:  # the first thing so large is the table of embeddings
            before = latest
        if before and now > most + 1e6:
            most = now
            with open(FILE, "w") as file:
                file.write(f"{before} {most}")
        latest = now
        time.sleep(0.0005)

if "gptpipe.train" in sys.orig_argv and "torch.distributed.run" not in sys.orig_argv:
    FILE = os.path.join(FOLDER, f"allocated-{os.environ.get('RANK', '0')}")
    threading.Thread(target=watch, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc what is allocated")
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"precision": "bfloat16"},
        {"activation_checkpointing": True},
        {"micro_batch": 2},
        {"model": {"dropout": 0.1}},
        {"model": {"tie_weights": False}, "nproc": 2},
    ],
)
def test_a_training_takes_what_it_said(
    new_training: NewTraining, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start/sitecustomize.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{WATCH}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "start"))
    model = {"n_layer": 6, "n_embd": 384, "n_head": 6, "context_length": 256, "dropout": 0.0}
    model |= change.pop("model", {})
    train: dict[str, Any] = {
        "steps": 4,
        "warmup_steps": 1,
        "batch_size": 8,
        "precision": "float32",
        "checkpoint_every": 2,
        "validate_every": 0,
    }
    train |= change
    nproc = int(train.setdefault("nproc", 1))
    training = new_training("memory", train=train, model=model)
    result, said = training.finish_and_listen()
    (found,) = re.findall(r"rank: ([\d.]+) GB .* copies ([\d.]+)\), beside ([\d.]+) GB of the process", said)
    predicted, copies, before = (float(number) * 1e3 for number in found)
    # what oneDNN copies for a product in half precision comes on top
    more = 150 if train["precision"] == "bfloat16" else 0
    for rank in range(nproc):
        started, most = (int(number) / 1e6 for number in (tmp_path / f"allocated-{rank}").read_text().split())
        expected = predicted - (copies if rank else 0)
        assert 0.95 * expected < most - started < 1.05 * expected + more
    lines = (Path(result["training"]) / "metrics.jsonl").read_text().splitlines()
    measured = json.loads(lines[-1])["train/memory_mb"] - before
    mean = predicted - copies * (nproc - 1) / nproc
    # what the allocator cannot use again, and the libraries' own buffers, come on top
    assert 0.95 * mean < measured < 1.2 * mean + 250
