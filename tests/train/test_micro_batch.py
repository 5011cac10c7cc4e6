"""Windows at once: as many as fit, and the compiler works once."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.model.gpt import GPT
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.distributed import Ranks
from gptpipe.train.micro_batch import MicroBatch
from gptpipe.train.state import TrainState
from tests.fixtures.gpu import Memory

TWO = Ranks(0, 0, 2, 2, torch.device("cpu"))
CUDA = Ranks(0, 0, 1, 1, torch.device("cuda"))
MODEL = ModelConfig()  # 124M, a context of 1,024: eight windows fill a chunk of the loss


def test_on_a_cpu_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(batch_size=64)
    monkeypatch.setattr(Ranks, "min", lambda _, value: value)

    def chosen(available: float, **state: Any) -> int:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": available})())
        return MicroBatch(config, MODEL, TWO, TrainState(**state), lambda windows: None).choose()

    assert chosen(1e15) == 32
    assert chosen(1) == 1
    some = chosen(40e9)
    assert 1 < some < 32
    budget = [MemoryBudget.of(MODEL, config, size, "float32", "cpu", 2).total for size in (some, 2 * some)]
    assert budget[0] < 0.7 * 20e9 < budget[1]
    assert chosen(1, micro_batch=7) == 7  # as before the stop
    config = TrainConfig(batch_size=64, micro_batch=5)
    assert chosen(1e15) == 5
    config = TrainConfig(batch_size=6, micro_batch=50)
    assert chosen(1e15) == 3


class Tried:
    """Trials on a GPU whose every window takes 0.4 GB beside 3 GB, more where it is compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: float, others: float = 0.0, compiled: float = 1.27):
        self.memory, self.factor, self.sizes = Memory(monkeypatch, total, others), compiled, []
        self.stances: list[str] = []
        monkeypatch.setattr("gptpipe.train.micro_batch.uncompiled", self._eager)
        self._is_eager = False

    def _eager(self, state: TrainState) -> Any:
        tried = self

        class Eager:
            def __enter__(self) -> None:
                tried._is_eager = True

            def __exit__(self, *_: object) -> None:
                tried._is_eager = False

        return Eager()

    def __call__(self, windows: int) -> None:
        self.sizes.append(windows)
        self.stances.append("eager" if self._is_eager else "as training")
        self.memory.take(3e9 + windows * 0.4e9 * (1 if self._is_eager else self.factor))

    def confirmed(self, batch_size: int = 480, **given: Any) -> tuple[int, TrainState]:
        config, state = TrainConfig(batch_size=batch_size, **given), TrainState(precision="bfloat16", compiled=True)
        chooser = MicroBatch(config, MODEL, CUDA, state, self)
        model = torch.nn.Module()
        model.h = torch.nn.ModuleList()
        return chooser.confirm(model, chooser.choose()), state  # type: ignore[arg-type]


def test_on_a_gpu_two_small_trials_foretell_the_size_that_one_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch, 141e9)
    assert tried.confirmed()[0] == 120  # 240 would take 125 GB, and 1.5 for the moments: more than the share
    assert tried.sizes == [8, 16, 120]
    assert tried.stances == ["eager", "eager", "as training"]  # one shape for the compiler


def test_what_others_hold_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tried(monkeypatch, 141e9, others=100e9).confirmed()[0] == 60
    assert Tried(monkeypatch, 141e9, others=125e9).confirmed()[0] == 15


def test_a_prediction_that_was_too_bold_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch, 141e9, compiled=2.9)
    size, state = tried.confirmed()
    assert (size, tried.sizes) == (60, [8, 16, 120, 60])
    assert state.compiled


def test_small_batches_and_small_gpus_are_tried_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch, 141e9)
    assert tried.confirmed(batch_size=12)[0] == 12
    assert tried.sizes == [12]
    small = Tried(monkeypatch, 6.5e9)
    assert small.confirmed()[0] == 2  # 16 windows, two chunks, do not fit: from one it is halved
    assert small.sizes == [8, 16, 8, 4, 2]


def test_a_size_that_was_given_or_was_there_before_a_stop_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch, 141e9)
    assert tried.confirmed(micro_batch=24)[0] == 24
    assert tried.sizes == [24]


def test_what_is_no_fault_of_the_compiler_is_not_laid_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, 141e9)

    def failing(windows: int) -> None:
        raise RuntimeError("an illegal memory access")

    chooser = MicroBatch(TrainConfig(), MODEL, CUDA, TrainState(compiled=False), failing)
    with pytest.raises(RuntimeError, match="illegal"):
        chooser.confirm(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8)), 4)
