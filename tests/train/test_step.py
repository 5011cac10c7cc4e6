"""What leaves loss and gradients as they are: accumulation, recomputing, compiling, bfloat16, padding; and skips."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.dataset.loader import TrainBatch
from gptpipe.model import loss as loss_module
from gptpipe.model.gpt import GPT
from gptpipe.model.loss import IGNORED
from gptpipe.model.precision import Precision
from gptpipe.train.adamw import AdamW
from gptpipe.train.compiler import compile_blocks
from gptpipe.train.distributed import Ranks
from gptpipe.train.optimizer import Optimizer, load_optimizers, make_optimizers, optimizer_tensors
from gptpipe.train.state import TrainState
from gptpipe.train.step import Stepper

ALONE = Ranks(0, 0, 1, 1, torch.device("cpu"))
SHAPE: dict[str, Any] = {"vocab_size": 211, "context_length": 24, "n_layer": 3, "n_head": 2, "n_embd": 32}


def batch(windows: int = 8, padded: bool = False) -> TrainBatch:
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, SHAPE["vocab_size"], (windows, SHAPE["context_length"] + 1), generator=draw)
    targets = tokens[:, 1:].clone()
    if padded:
        for row in range(windows):
            targets[row, 3 + 2 * row :] = IGNORED
    return TrainBatch(tokens[:, :-1], targets, int((targets != IGNORED).sum()), np.array([targets.numel()]))


class Rig:
    """A model, its optimizers and a stepper."""

    def __init__(self, dropout: float = 0.0, precision: str = "float32", micro_batch: int = 8, **train: Any) -> None:
        torch.manual_seed(1)
        self.config = TrainConfig(**{"steps": 50, "warmup_steps": 2, "batch_size": 8, "grad_clip": 0.0, **train})
        self.model = GPT(ModelConfig(**SHAPE, dropout=dropout))
        self.model.recompute = self.config.activation_checkpointing
        self.optimizers = make_optimizers(self.model, self.config)
        self.state = TrainState(micro_batch=micro_batch)
        self.stepper = Stepper(
            self.model, self.model, self.optimizers, self.config, ALONE, Precision(precision, "cpu"), self.state
        )

    def gradients(self, given: TrainBatch) -> tuple[float, dict[str, Tensor]]:
        """Summed loss and gradients of a batch, no step taken."""
        loss = self.stepper.backward(given).item()
        found = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return loss, found

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative difference of a gradient."""
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-12)) for n in expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_accumulation_leaves_loss_and_gradients(micro_batch: int, padded: bool) -> None:
    whole_loss, whole = Rig().gradients(batch(padded=padded))
    loss, parts = Rig(micro_batch=micro_batch).gradients(batch(padded=padded))
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert distance(parts, whole) < 2e-6


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_leaves_every_bit(dropout: float) -> None:
    loss, kept = Rig(dropout=dropout).gradients(batch())
    rig, passes = Rig(dropout=dropout, activation_checkpointing=True), []
    for number, block in enumerate(rig.model.h):
        block.register_forward_pre_hook(lambda *_, number=number: passes.append(number))
    again, computed = rig.gradients(batch())
    assert passes == [0, 1, 2, 2, 1, 0]  # each block again, when the backward pass comes to it
    assert again == loss
    assert all(torch.equal(computed[name], kept[name]) for name in kept)


def test_bfloat16_stays_within_its_rounding() -> None:
    loss, wide = Rig().gradients(batch())
    half_loss, half = Rig(precision="bfloat16").gradients(batch())
    assert half_loss == pytest.approx(loss, rel=2e-3)
    assert distance(half, wide) < 3e-2
    assert all(value.dtype == torch.float32 for value in half.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_blocks_leave_loss_and_gradients(precision: str) -> None:
    expected_loss, expected = Rig(precision=precision).gradients(batch())
    rig = Rig(precision=precision)
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compile_blocks(rig.model, rig.config.model_copy(update={"compile": True}), ALONE, rig.state)
    loss, found = rig.gradients(batch())
    assert rig.state.compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    tolerance = 1e-5 if precision == "float32" else 2e-2
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert distance(found, expected) < tolerance


@pytest.mark.parametrize("shift", [0.0, -40.0])
def test_the_padding_of_the_vocabulary_has_no_part(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """Logits far below zero: a padded logit of zero would take all the probability."""

    def run(multiple: int) -> tuple[float, dict[str, Tensor]]:
        monkeypatch.setattr(loss_module, "VOCABULARY_MULTIPLE", multiple)
        rig = Rig(precision="bfloat16")
        with torch.no_grad():
            rig.model.ln_f.bias.add_(1.0)
            rig.model.lm_head.weight.add_(shift / SHAPE["n_embd"])
        return rig.gradients(batch())

    plain_loss, plain = run(1)
    loss, padded = run(64)
    assert SHAPE["vocab_size"] % 64
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert distance(padded, plain) < 1e-2
    assert padded["wte.weight"].shape == (SHAPE["vocab_size"], SHAPE["n_embd"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("repeated", [True, False])
def test_the_gradient_of_a_tied_matrix_is_that_of_the_plain_computation(tied: bool, repeated: bool) -> None:
    torch.manual_seed(2)
    model = GPT(ModelConfig(**SHAPE, tie_weights=tied))
    given = batch(padded=True)
    inputs = given.inputs.clone()
    if repeated:
        inputs[:, ::3] = 7
    for turn in range(2):  # the second adds to the first, as micro-batches do
        plain = torch.nn.functional.cross_entropy(
            model(inputs).flatten(0, 1), given.targets.flatten(), reduction="sum", ignore_index=IGNORED
        )
        expected = torch.autograd.grad(plain, list(model.parameters()))
        (model(inputs, given.targets) * 1.0).backward()
        for (name, parameter), wanted in zip(model.named_parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert distance({name: parameter.grad}, {name: wanted * (turn + 1)}) < 1e-5, name


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("limit", [0.01, 1e6, 0.0])
def test_a_gradient_is_scaled_to_the_limit_and_one_below_it_is_left(
    limit: float, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = Rig().gradients(batch())
    rig = Rig(grad_clip=limit)
    rig.stepper.decides_on_device = on_device
    norm = torch.stack([value.norm() for value in expected.values()]).norm().item()
    if limit == 0.01:
        expected = {name: value * (limit / norm) for name, value in expected.items()}
    seen: dict[str, Tensor] = {}
    take = AdamW.step

    def step(self: AdamW, skip: Tensor | None = None) -> None:
        seen.update({n: p.grad.clone() for n, p in rig.model.named_parameters() if p.grad is not None})
        take(self, skip)

    monkeypatch.setattr(AdamW, "step", step)
    result = rig.stepper.take(batch())
    assert result.grad_norm.item() == pytest.approx(norm, rel=1e-5)  # before clipping
    assert distance(seen, expected) < 1e-4 if limit == 0.01 else all(torch.equal(seen[n], expected[n]) for n in seen)
    assert seen.keys() == expected.keys()


def poisoned(rig: Rig, value: float) -> None:
    """From now on a backward pass leaves one gradient that is not finite."""
    real = rig.stepper.backward

    def backward(given: TrainBatch) -> Tensor:
        loss = real(given)
        rig.model.h[0].mlp.c_fc.weight.grad[0, 0] = value  # type: ignore[index,union-attr]
        return loss

    rig.stepper.backward = backward  # type: ignore[method-assign]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_taken(on_device: bool, value: float) -> None:
    rig = Rig()
    rig.stepper.decides_on_device = on_device
    rig.stepper.take(batch())
    rig.stepper.settle()
    before, moments = rig.weights(), {k: v.clone() for k, v in optimizer_tensors(rig.model, rig.optimizers).items()}
    real = rig.stepper.backward
    poisoned(rig, value)
    for _ in range(3):
        rig.stepper.take(batch())
    rig.stepper.settle()
    assert (rig.state.step, rig.state.skipped_steps, rig.state.bad_in_a_row) == (4, 3, 3)
    assert all(torch.equal(value, before[name]) for name, value in rig.weights().items())
    after = optimizer_tensors(rig.model, rig.optimizers)
    assert all(torch.equal(after[name], moments[name]) for name in moments)
    rig.stepper.backward = real  # type: ignore[method-assign]
    rig.stepper.take(batch())
    rig.stepper.settle()
    assert (rig.state.skipped_steps, rig.state.bad_in_a_row) == (3, 0)
    assert not torch.equal(rig.weights()["wte.weight"], before["wte.weight"])


@pytest.mark.parametrize(("action", "moved"), [("warn", True), ("skip", False), ("rollback", False)])
def test_a_spike_is_taken_only_with_a_warning(action: str, moved: bool) -> None:
    rig = Rig(spike_action=action, spike_window=16, learning_rate=1e-6)
    for _ in range(16):
        assert rig.stepper.take(batch()).verdict == "ordinary"
    before = rig.weights()["wte.weight"]
    rare = batch()
    with torch.no_grad():  # the same model, other text: none of it looks like what it has seen
        rig.model.lm_head.weight[rare.targets.unique()] *= 40
    changed = rig.weights()["wte.weight"]
    done = rig.stepper.take(rare)
    assert not torch.equal(before, changed)
    assert done.verdict == "spike"
    assert done.score > 6
    assert torch.equal(rig.weights()["wte.weight"], changed) is not moved
    assert rig.state.skipped_steps == (not moved)
    assert len(rig.state.spike_window) == 16


def parameters_of(optimizer: Optimizer, model: GPT, decaying: Callable[[float], bool]) -> set[str]:
    names = {p: name for name, p in model.named_parameters()}
    return {names[p] for group in optimizer.param_groups if decaying(group["weight_decay"]) for p in group["params"]}


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    rig = Rig(optimizer="muon")
    adamw, muon = rig.optimizers
    hidden = parameters_of(muon, rig.model, lambda decay: decay == 0.1)
    assert hidden == {n for n, p in rig.model.named_parameters() if n.startswith("h.") and p.ndim == 2}
    assert parameters_of(adamw, rig.model, lambda decay: decay == 0.1) == {"wte.weight", "wpe.weight"}
    rest = parameters_of(adamw, rig.model, lambda decay: True)
    assert hidden | rest == {name for name, _ in rig.model.named_parameters()}
    assert not hidden & rest
    everything = Rig(decay_vectors=True)
    assert len(parameters_of(everything.optimizers[0], everything.model, lambda decay: decay == 0.1)) == len(
        list(everything.model.parameters())
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_loss_and_its_state_round_trips(optimizer: str) -> None:
    rig = Rig(optimizer=optimizer, learning_rate=5e-3)
    losses = [float(rig.stepper.take(batch()).loss) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    saved = {name: value.clone() for name, value in optimizer_tensors(rig.model, rig.optimizers).items()}
    other = Rig(optimizer=optimizer, learning_rate=5e-3)
    other.model.load_state_dict(rig.weights())
    load_optimizers(other.model, other.optimizers, saved, "here")
    other.state.step = rig.state.step
    rig.stepper.take(batch())
    other.stepper.take(batch())
    assert all(torch.equal(value, rig.weights()[name]) for name, value in other.weights().items())
