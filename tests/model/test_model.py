"""The model against the lecture's numbers and against transformers' GPT-2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gptpipe.config import DataConfig, ModelConfig, PipelineConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.loader import gather
from gptpipe.dataset.stream import TokenStream
from gptpipe.dataset.windows import evaluation_windows
from gptpipe.model.gpt import GPT

INPUTS = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
TARGETS = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])


def book_model(context_length: int = 256) -> GPT:
    config = PipelineConfig(preset="book-124m").model.model_copy(update={"context_length": context_length})
    torch.manual_seed(123)
    return GPT(config).eval()


@torch.no_grad()
def test_lecture_loss_and_perplexity_of_two_sentences() -> None:
    logits = book_model()(INPUTS)
    loss = F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())
    assert loss.item() == pytest.approx(10.7940, rel=1e-5)
    assert loss.exp().item() == pytest.approx(48725.8, rel=1e-5)


@pytest.mark.parametrize(
    ("split", "batches", "expected"),
    [pytest.param("train", 9, 10.98758, marks=pytest.mark.slow), ("validation", 1, 10.98110)],
)
@torch.no_grad()
def test_lecture_untrained_losses_on_the_verdict(
    lecture_text: Path, tmp_path: Path, split: str, batches: int, expected: float
) -> None:
    made = tokenize(DataConfig(corpus=[str(lecture_text)], validation=0.1), str(tmp_path))
    stream = TokenStream(open_dataset(made.dataset), split, TokenCache(tmp_path / "cache", 10**12))
    starts = np.array([start for start, size, _ in evaluation_windows(stream.length, 256) if size == 256])
    assert len(starts) // 2 == batches
    inputs, targets = gather(stream, starts[: 2 * batches], np.full(2 * batches, 256), 256)
    model = book_model()
    loss = sum(model(x, y).item() for x, y in zip(inputs.split(2), targets.split(2), strict=True)) / targets.numel()
    assert loss == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_book_greedy_continuation() -> None:
    model = book_model(context_length=1024)
    ids = torch.tensor([[15496, 11, 314, 716]])
    for _ in range(10):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert ids[0, 4:].tolist() == [27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_parameter(qkv_bias: bool, tied: bool) -> None:
    model = GPT(
        ModelConfig(
            vocab_size=97, context_length=8, n_layer=2, n_head=2, n_embd=16, qkv_bias=qkv_bias, tie_weights=tied
        )
    )
    tokens = torch.randint(0, 97, (3, 8))
    model(tokens, tokens).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert ("lm_head.weight" in dict(model.named_parameters())) is not tied


def test_gpt2_initialisation_has_its_scales() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=5000, context_length=64, n_layer=8, n_head=4, n_embd=128))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[0].attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)  # 1 / sqrt(2 * 8)
    assert model.h[0].mlp.c_fc.bias.abs().sum() == 0


def test_parameters_of_gpt2_small() -> None:
    with torch.device("meta"):
        model = GPT(PipelineConfig(preset="gpt2-124m").model)
    assert model.count_parameters() == 124_439_808
    # 6 N + 12 L C T, N without position embeddings
    assert model.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_too_long_a_sequence_is_refused() -> None:
    model = GPT(ModelConfig(vocab_size=50, context_length=4, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(ValueError, match="5 tokens do not fit into a context of 4"):
        model(torch.zeros((1, 5), dtype=torch.int64))
