"""The memory per step is said to take beforehand, against what it takes."""

from __future__ import annotations

import json
import re
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


@pytest.mark.slow
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
def test_a_training_takes_what_it_said(new_training: NewTraining, change: dict[str, Any]) -> None:
    model = {"n_layer": 6, "n_embd": 384, "n_head": 6, "context_length": 256, "dropout": 0.0}
    model |= change.pop("model", {})
    train = {
        "steps": 4,
        "warmup_steps": 1,
        "batch_size": 8,
        "precision": "float32",
        "checkpoint_every": 0,
        "validate_every": 0,
    }
    training = new_training("memory", train={**train, **change}, model=model)
    result, said = training.finish_and_listen()
    (found,) = re.findall(r"memory per rank: ([\d.]+) GB .* predicted .* beside ([\d.]+) GB of the process", said)
    lines = (Path(result["training"]) / "metrics.jsonl").read_text().splitlines()
    predicted, before = (float(number) * 1e3 for number in found)
    measured = json.loads(lines[-1])["train/memory_mb"] - before
    # what the allocator cannot use again, and the libraries' own buffers, come on top
    assert 0.95 * predicted < measured < 1.2 * predicted + 250
