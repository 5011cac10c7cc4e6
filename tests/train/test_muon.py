"""Muon against torch's own, against singular value decomposition, and shared out among ranks."""

from __future__ import annotations

import multiprocessing as mp
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gptpipe import GPT, ModelConfig
from gptpipe.config import TrainConfig
from gptpipe.train.muon import Muon, orthogonal
from gptpipe.train.optimizer import make_optimizers, optimizer_tensors

SHAPES = [(48, 48), (48, 48), (24, 96), (96, 24), (16, 200)]


def matrices() -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def give_gradients(parameters: list[torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_the_updates_are_those_of_torch() -> None:
    mine, theirs = matrices(), matrices()
    before = [each.detach().clone() for each in mine]
    muon = Muon(mine, learning_rate=0.02, weight_decay=0.1, momentum=0.95)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        muon.step()
        other.step()
    for each, same, start in zip(mine, theirs, before, strict=True):
        assert (each - same).norm() < 5e-3 * (each - start).norm()  # bfloat16, added up in another order
        assert torch.equal(muon.state[each]["momentum_buffer"], other.state[same]["momentum_buffer"])


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    """The polar factor by singular value decomposition in float64; the quintic leaves values between 0.7 and 1.2."""
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.3, 1.0, min(shape), dtype=torch.float64)
    (made,) = orthogonal((left * values @ right)[None].float()).double()
    in_its_basis = left.T @ made @ right.T
    assert in_its_basis.diagonal().min() > 0.65
    assert in_its_basis.diagonal().max() < 1.25
    assert (in_its_basis - in_its_basis.diagonal().diag()).abs().max() < 0.03


def test_a_device_without_bfloat16_rounds_as_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    given, made = torch.randn(3, 48, 96), []
    for in_hardware in (True, False):
        monkeypatch.setattr("gptpipe.train.muon.has_bfloat16", lambda _, answer=in_hardware: answer)
        made.append(orthogonal(given))
    assert {each.dtype for each in made} == {torch.bfloat16}
    first, second = (each.double() for each in made)
    assert (first - second).norm() < 1e-2 * first.norm()  # sums in another order, rounded alike


def test_matrices_in_one_parameter_are_made_orthogonal_apart() -> None:
    whole = torch.nn.Parameter(torch.zeros(48 + 24 + 24, 48))
    apart = [torch.nn.Parameter(torch.zeros(rows, 48)) for rows in (48, 24, 24)]
    muon = Muon([whole], learning_rate=1.0, weight_decay=0.0, momentum=0.9, parts={whole: [48, 24, 24]})
    other = Muon(apart, learning_rate=1.0, weight_decay=0.0, momentum=0.9)
    whole.grad = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2))
    for each, gradient in zip(apart, whole.grad.split([48, 24, 24]), strict=True):
        each.grad = gradient.clone()
    muon.step()
    other.step()
    assert torch.allclose(whole, torch.cat(apart), atol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_models_matrices_are_those_of_its_file(architecture: str) -> None:
    model = GPT(ModelConfig(architecture=architecture, n_layer=2, n_head=4, n_embd=32, vocab_size=50, context_length=8))
    for parameter, sizes in model.matrices().items():
        assert sum(sizes) == len(parameter)
    names = {parameter: name for name, parameter in model.named_parameters()}
    fused = {names[parameter] for parameter in model.matrices()}
    gated = {f"h.{layer}.mlp.c_fc.weight" for layer in range(2)} if architecture == "qwen3" else set()
    assert fused == {f"h.{layer}.attn.c_attn.weight" for layer in range(2)} | gated


def _one_rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT(ModelConfig(architecture="qwen3", n_layer=2, n_head=4, n_embd=32, vocab_size=50, context_length=8))
    optimizers = make_optimizers(model, TrainConfig(optimizer="muon"), rank, world)
    for step in range(3):
        give_gradients(list(model.parameters()), step)
        for optimizer in optimizers:
            optimizer.step()
    few = torch.nn.Parameter(torch.ones(4, 4))  # a matrix, for more ranks than there are
    single = Muon([few], learning_rate=0.1, weight_decay=0.0, momentum=0.9, rank=rank, world_size=world)
    give_gradients([few], 0)
    single.step()
    made = {**model.state_dict(), **optimizer_tensors(model, optimizers), "few": few.detach()}
    torch.save(made, f"{folder}/{world}-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_share_the_work_and_take_one_step(tmp_path: Path) -> None:
    """All ranks end with the same bits, near those of one that did it all."""
    context = mp.get_context("spawn")
    for world in (1, 3):
        (tmp_path / "meet").unlink(missing_ok=True)
        ranks = [context.Process(target=_one_rank, args=(rank, world, str(tmp_path))) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            assert process.exitcode == 0
    alone = torch.load(tmp_path / "1-0.pt")
    first, *others = (torch.load(tmp_path / f"3-{rank}.pt") for rank in range(3))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    for name in first:
        assert torch.allclose(first[name], alone[name], atol=2e-5), name
