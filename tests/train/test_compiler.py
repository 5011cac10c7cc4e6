"""Compiled blocks: what fails or does not end is done without, and what was compiled is there the next time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.dataset.loader import TrainBatch
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import Precision
from gptpipe.train import compiler
from gptpipe.train.compiler import CompilerTooSlow, compile_blocks, within
from gptpipe.train.distributed import Ranks
from gptpipe.train.micro_batch import MicroBatch, run_trial
from gptpipe.train.optimizer import make_optimizers
from gptpipe.train.state import TrainState
from gptpipe.train.step import Stepper

ALONE = Ranks(0, 0, 1, 1, torch.device("cpu"))
SHAPE = ModelConfig(vocab_size=61, context_length=12, n_layer=2, n_head=2, n_embd=16)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")


def failing(windows: int) -> None:
    raise RuntimeError("no compiler here\nat line 7 of something")


def never_ending(windows: int) -> None:
    with suppress(CompilerTooSlow):  # a compiler may swallow what it does not know
        time.sleep(60)
    time.sleep(60)


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (failing, "RuntimeError: no compiler here"),
        (never_ending, "CompilerTooSlow: it took more than train.compile_timeout, 0.2 seconds"),
    ],
)
def test_a_compiler_that_fails_or_does_not_end_is_told_once_and_done_without(
    trial: Callable[[int], None], said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "PATIENCE", 0.2)
    config, model = TrainConfig(compile=True, micro_batch=2, compile_timeout=0.2), GPT(SHAPE)
    state = TrainState(precision="float32")
    compile_blocks(model, config, ALONE, state)
    assert state.compiled
    chooser = MicroBatch(config, SHAPE, ALONE, state, trial)
    assert chooser.confirm(model, chooser.choose()) == 2
    assert state.compiled is False
    assert [record.message for record in caplog.records] == [f"torch.compile failed, going on without it: {said}"]
    tokens = torch.zeros((2, 12), dtype=torch.int64)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model(tokens, tokens).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_a_trial_that_fails_half_way_leaves_no_gradient() -> None:
    model = GPT(SHAPE)

    def fail(gradient: torch.Tensor) -> None:
        raise RuntimeError("no compiler for the backward pass")

    model.h[0].mlp.c_fc.weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="backward pass"):
        run_trial(model, Precision("float32", "cpu"), 2, SHAPE, ALONE)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@needs_compiler
def test_what_is_left_of_a_batch_is_not_compiled_for() -> None:
    config, model = TrainConfig(compile=True, batch_size=5, steps=4, warmup_steps=1), GPT(SHAPE)
    state = TrainState(precision="float32", micro_batch=2)
    compile_blocks(model, config, ALONE, state)
    stepper = Stepper(model, model, make_optimizers(model, config), config, ALONE, Precision("float32", "cpu"), state)
    tokens = torch.arange(60).view(5, 12) % 61
    frames = []
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run_trial(model, Precision("float32", "cpu"), 2, SHAPE, ALONE)
    for _ in range(2):
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
        stepper.take(TrainBatch(tokens, tokens, 60, np.array([60])))
    frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
    assert frames[0] > 0
    assert frames == [frames[0]] * 3  # whole micro-batches are what the trial was, and the rest is not compiled


def test_work_that_ends_in_time_is_not_disturbed_afterwards_nor_is_another_timer() -> None:
    rung: list[int] = []
    theirs = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    others = signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with within(0.1):
            pass
        time.sleep(0.2)
        assert not rung
        time.sleep(0.4)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, theirs)
        signal.setitimer(signal.ITIMER_REAL, *others)


PROGRAM = """
import json, logging, sys
logging.basicConfig(level="WARNING", format="%(message)s")
from gptpipe.train.compiler import compile_blocks, keep_compiled, uncompiled
keep_compiled()
import torch
from torch._dynamo.utils import counters
from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.model.gpt import GPT
from gptpipe.train.distributed import Ranks
from gptpipe.train.micro_batch import MicroBatch
from gptpipe.train.state import TrainState
torch.manual_seed(0)
shape = ModelConfig(vocab_size=61, context_length=12, n_layer=2, n_head=2, n_embd=16)
model, config, state = GPT(shape), TrainConfig(compile=True, micro_batch=2), TrainState(precision="float32")
alone = Ranks(0, 0, 1, 1, torch.device("cpu"))
compile_blocks(model, config, alone, state)
tokens = torch.arange(24).view(2, 12)
def trial(windows):
    model(tokens[:windows], tokens[:windows]).backward()
chooser = MicroBatch(config, shape, alone, state, trial)
chooser.confirm(model, chooser.choose())
graphs = counters["stats"]["unique_graphs"]
with torch.no_grad(), uncompiled(state):  # a validation, at another size
    model.eval()
    model(tokens[:1], tokens[:1])
    model.train()
loss = float(model(tokens, tokens).detach())  # by what was compiled
again = counters["stats"]["unique_graphs"] - graphs
hits, misses = (counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("hit", "miss"))
aot = counters["aot_autograd"]
hits, misses = hits + aot["autograd_cache_hit"], misses + aot["autograd_cache_miss"]
print(json.dumps({"compiled": state.compiled, "hits": hits, "misses": misses, "again": again, "loss": loss}))
"""


def in_a_process(home: Path, **variables: str) -> tuple[dict[str, float], str]:
    environment = {name: value for name, value in os.environ.items() if name not in compiler.VARIABLES}
    environment |= {"GPTPIPE_HOME": str(home), "TMPDIR": str(home.parent), **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
@needs_compiler
def test_what_was_compiled_is_there_the_next_time_and_damage_does_not_hurt(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, said = in_a_process(home)
    assert first["compiled"]
    assert (first["hits"], first["again"]) == (0, 0)
    assert first["misses"] > 0
    assert not said
    second, _ = in_a_process(home)
    assert second["hits"] > 0
    assert (second["misses"], second["again"]) == (0, 0)
    assert second["loss"] == first["loss"]
    files = [path for path in (home / "cache" / "compiled").rglob("*") if path.is_file()]
    assert files
    for number, path in enumerate(files):
        content = path.read_bytes()
        path.write_bytes((b"", content[: len(content) // 2], bytes(len(content)))[number % 3])
    third, _ = in_a_process(home)
    assert (third["compiled"], third["loss"]) == (True, first["loss"])


@pytest.mark.slow
@needs_compiler
def test_a_folder_that_cannot_be_written_costs_the_next_run_its_time_and_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "compiled").write_text("a file where the folder should be")
    made, said = in_a_process(home)
    assert made["compiled"]
    assert "what is compiled is not kept for the next run: " in said
    assert said.count("\n") == 1
