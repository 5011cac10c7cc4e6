"""Proves that adapted weights compute what they computed where nothing changed, and start sensibly where it did."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiktoken
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from gptpipe import GPT, UserError
from gptpipe.config import PipelineConfig
from gptpipe.tokenizer import END_OF_TEXT, Tokenizer, get_tokenizer
from gptpipe.weights import adapt
from gptpipe.weights.adapt import adapted, import_name, import_weights, starting_from
from gptpipe.weights.find import read_weights
from tests.weights.test_weights import reference

CONTEXT = 12


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    reference(2, 2, 32, CONTEXT, 50257, tied=request.param).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logits(model: GPT, count: int) -> Tensor:
    model.eval()
    return model(torch.arange(100, 100 + count)[None])[0]


@pytest.mark.parametrize("context", [5, CONTEXT, 40])
def test_another_context_computes_the_same_as_far_as_both_reach(weights: str, context: int) -> None:
    before = read_weights(weights)
    after = adapted(before, context_length=context)
    count = min(context, CONTEXT)
    assert torch.equal(logits(after.build(), count), logits(before.build(), count))
    assert (after.identity == before.identity) == (context == CONTEXT)
    positions = after.tensors["wpe.weight"].read()
    assert positions.shape == (context, 32)
    for place in range(context):
        assert torch.equal(positions[place], before.tensors["wpe.weight"].read()[place % CONTEXT])


@torch.no_grad()
def test_transformers_reads_an_extended_one_past_the_old_context(weights: str, tmp_path: Path) -> None:
    made = import_weights(weights, str(tmp_path), context_length=40)
    tokens = torch.arange(30)[None]
    theirs = GPT2LMHeadModel.from_pretrained(made.url).eval()(tokens).logits
    assert torch.allclose(read_weights(made.url).build().eval()(tokens), theirs, atol=1e-4)
    other = import_weights(weights, str(tmp_path / "cut"), context_length=5)
    assert starting_from(PipelineConfig(), other.url).model.context_length == 5
    assert starting_from(PipelineConfig(), other.url).model.n_embd == 32
    assert starting_from(PipelineConfig(), "") == PipelineConfig()


def vocabulary(*words: str) -> Tokenizer:
    """All bytes and these words."""
    ranks = {bytes([i]): i for i in range(256)}
    for word in words:
        for end in range(2, len(word) + 1):  # every beginning, so that merges lead there
            ranks.setdefault(word[:end].encode(), len(ranks))
    special = {END_OF_TEXT: len(ranks)}
    return Tokenizer(tiktoken.Encoding("small", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens=special))


def test_a_token_that_both_have_keeps_its_embedding(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = vocabulary(" the", "zqzq")
    monkeypatch.setattr(adapt, "get_tokenizer", lambda name: small if name == "small" else get_tokenizer(name))
    before = read_weights(weights)
    after = adapted(before, tokenizer="small")
    assert (after.tokenizer, after.config.vocab_size) == ("small", small.vocab_size)
    assert after.build().wte.weight.shape == (small.vocab_size, 32)
    gpt2 = get_tokenizer().encoding
    for name in {"wte.weight", "lm_head.weight"} & set(before.tensors):
        old, new = before.tensors[name].read(), after.tensors[name].read()
        assert torch.equal(new[small.encode(" the")[0]], old[gpt2.encode_single_token(" the")])
        assert torch.equal(new[ord("a")], old[gpt2.encode_single_token("a")])
        assert torch.equal(new[small.end_of_text], old[50256])
        pieces = gpt2.encode_ordinary("zqzq")
        assert len(pieces) > 1
        assert torch.allclose(new[small.encode("zqzq")[0]], old[pieces].mean(0), atol=1e-6)
    assert adapted(before, tokenizer="gpt2") is before


def test_weights_of_an_unknown_vocabulary_are_not_resized(tmp_path: Path) -> None:
    reference(1, 1, 16, 8, 300).save_pretrained(tmp_path / "in")
    with pytest.raises(UserError, match="the weights know 300 tokens, the tokenizer 'gpt2' has 50257"):
        import_weights(str(tmp_path / "in"), str(tmp_path / "out"))


def test_a_context_that_no_model_may_have_is_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context_length"):
        import_weights(weights, str(tmp_path / "out"), context_length=10**11)
    assert not (tmp_path / "out").exists()


def test_imported_weights_are_called_the_same_wherever_the_process_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    names = set()
    for folder, local in ((tmp_path, "in"), (tmp_path / "in", "../in"), (tmp_path / "in", str(tmp_path / "in"))):
        monkeypatch.chdir(folder)
        names.add((import_name("hf:owner/name"), import_name(str(Path(local).resolve()))))
    assert len(names) == 1
    hub, here = names.pop()
    assert hub != here
    assert len({hub, import_name("hf:owner/name", context_length=8), import_name("hf:owner/name", tokenizer="x")}) == 3
