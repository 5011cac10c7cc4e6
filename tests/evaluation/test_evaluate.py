"""Evaluation against torch's own cross-entropy and against what can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from gptpipe import GPT, ModelConfig, UserError, evaluate
from gptpipe.config import DataConfig, EvaluateConfig
from gptpipe.corpus.build import tokenize
from gptpipe.evaluation.result import entropy
from gptpipe.tokenizer import get_tokenizer

TEXT = "The quick brown fox — naïve, 東京 — jumps over the lazy dog.\n" * 9


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)  # a draw that is a little better than guessing
    return GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32)).eval()


@torch.no_grad()
def plain_nats(model: GPT, ids: list[int], context: int) -> float:
    """Each window's targets in turn, none twice, the first token never."""
    nats = 0.0
    for start in range(0, len(ids) - 1, context):
        window = torch.tensor([ids[start : start + context + 1]])
        nats += F.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="sum").item()
    return nats


def test_a_model_in_memory_whose_numbers_are_not_finite_is_refused() -> None:
    broken = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32))
    broken.ln_f.weight.data[3] = math.nan
    with pytest.raises(UserError, match="the loss is not finite"):
        evaluate(broken, text=TEXT)


@pytest.mark.parametrize("context", [None, 7, 32])
def test_a_text_scores_as_by_hand(model: GPT, context: int | None) -> None:
    ids = get_tokenizer().encode(TEXT)
    found = evaluate(model, text=TEXT, config=EvaluateConfig(context_length=context or 0))
    nats = plain_nats(model, ids, context or 32)
    assert found.tokens == len(ids) - 1
    assert found.cross_entropy == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.cross_entropy))
    first = len(get_tokenizer().encoding.decode_single_token_bytes(ids[0]))
    assert found.bytes == len(TEXT.encode()) - first
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-6)
    assert found.uniform == pytest.approx(math.log(50257))


def test_unigram_is_the_entropy_of_the_tokens() -> None:
    assert entropy(np.array([0, 5, 5, 0])) == pytest.approx(math.log(2))
    assert entropy(np.array([8, 4, 4])) == pytest.approx(-(0.5 * math.log(0.5) + 0.5 * math.log(0.25)))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_split_scores_every_token_but_the_first(model: GPT, batch_size: int, tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(TEXT + str(i))
    made = tokenize(DataConfig(corpus=[str(tmp_path)], validation=0.3), str(tmp_path / "out"))
    found = evaluate(model, data=made.dataset, config=EvaluateConfig(split="train", batch_size=batch_size))
    validation = evaluate(model, data=made.dataset)
    assert found.tokens + validation.tokens == made.tokens + made.documents - 2  # separators count, first tokens do not
    assert "nats worse than knowing the text's token frequencies" in found.sentence  # an untrained model
    limited = evaluate(model, data=made.dataset, config=EvaluateConfig(split="train", max_tokens=320))
    assert limited.tokens == 320
    assert limited.unigram == found.unigram


def test_batch_size_does_not_matter(model: GPT, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 8)
    made = tokenize(DataConfig(corpus=[str(tmp_path / "a.txt")]), str(tmp_path / "out"))
    scores = [evaluate(model, data=made.dataset, config=EvaluateConfig(batch_size=b)).cross_entropy for b in (1, 3, 8)]
    assert max(scores) - min(scores) < 1e-6


@pytest.mark.parametrize("text", ["", "a"])
def test_fewer_than_two_tokens_are_refused(model: GPT, text: str) -> None:
    with pytest.raises(UserError, match="nothing has a token before it"):
        evaluate(model, text=text)


def test_what_does_not_fit_is_refused(model: GPT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model's context is 32"):
        evaluate(model, text=TEXT, config=EvaluateConfig(context_length=33))
    with pytest.raises(UserError, match="leaves tokens out between windows of 32"):
        evaluate(model, text=TEXT, config=EvaluateConfig(stride=33))
    with pytest.raises(ValidationError, match="leaves tokens out between windows of 8"):
        EvaluateConfig(context_length=8, stride=9)
    other = GPT(ModelConfig(vocab_size=300, n_layer=1, n_head=1, n_embd=8, context_length=8))
    with pytest.raises(UserError, match="the weights know 300 tokens"):
        evaluate(other, text=TEXT)
    with pytest.raises(UserError, match="either a dataset or a text"):
        evaluate(model)
    with pytest.raises(UserError, match="no dataset"):
        evaluate(model, data=str(tmp_path))
