"""Proves the sums: against transformers' recipe, whatever the batches and ranks, and part by part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gptpipe import GPT, ModelConfig, UserError, evaluate, load, storage
from gptpipe.config import DataConfig, EvaluateConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.windows import evaluation_windows
from gptpipe.evaluation.breakdown import calibration
from gptpipe.evaluation.documents import count_words, documents_of_text
from gptpipe.evaluation.evaluate import evaluate_whole, in_one_window
from gptpipe.evaluation.excerpts import look
from gptpipe.evaluation.score import score, tokens_at_once
from gptpipe.evaluation.tally import BINS, Tally
from gptpipe.model.precision import to_precision
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.find import read_weights
from tests.weights.test_weights import reference

CONTEXT = 24
TEXTS = [f"{'The quick brown fox — naïve, 東京 — jumps.' * (1 + i % 7)}\n{i}  \n" for i in range(23)]


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return reference(2, 2, 32, CONTEXT, 50257)


@pytest.fixture(scope="module")
def ours(theirs: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> GPT:
    folder = tmp_path_factory.mktemp("reference")
    theirs.save_pretrained(folder)
    return load(str(folder))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02d}.txt").write_text(text)
    return tokenize(DataConfig(corpus=[str(folder)], validation=0), str(folder / "out")).dataset


def whole(model: GPT, dataset: str, **options: object) -> Tally:
    config = EvaluateConfig.model_validate({"split": "train", **options})
    return evaluate_whole(model, data=dataset, config=config).tally


@torch.no_grad()
@pytest.mark.parametrize("stride", [5, CONTEXT - 1, 1])
def test_strided_perplexity_is_the_recipe_of_transformers(theirs: GPT2LMHeadModel, ours: GPT, stride: int) -> None:
    """The recipe of its page on the perplexity of models of fixed length, each window's loss weighted by its tokens.
    Its window of n tokens predicts n - 1."""
    text = "".join(TEXTS[: 3 if stride == 1 else 9])
    ids = torch.tensor([get_tokenizer().encode(text)])
    nats, tokens, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + CONTEXT, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - previous)] = -100
        counted = int((labels[:, 1:] != -100).sum())
        nats += theirs(ids[:, begin:end], labels=labels).loss.double().item() * counted
        tokens, previous = tokens + counted, end
        if end == ids.shape[1]:
            break
    found = evaluate(ours, text=text, config=EvaluateConfig(context_length=CONTEXT - 1, stride=stride))
    assert found.tokens == tokens == ids.shape[1] - 1
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-6)


@torch.no_grad()
def test_documents_apart_begin_after_the_separator(ours: GPT, dataset: str) -> None:
    tally = whole(ours, dataset, documents="apart")
    tokenizer, nats, tokens = get_tokenizer(), [], []
    for text in TEXTS:
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        total = 0.0
        for done in range(1, len(ids), CONTEXT):
            end = min(done + CONTEXT, len(ids))
            window = torch.tensor([ids[max(0, end - CONTEXT - 1) : end]])
            losses = F.cross_entropy(ours(window[:, :-1])[0], window[0, 1:], reduction="none")
            total += losses[-(end - done) :].double().sum().item()
        nats.append(total)
        tokens.append(len(ids) - 1)
    assert sorted(zip(tally.document_tokens.tolist(), np.round(tally.document_nats, 2), strict=True)) == sorted(
        zip(tokens, np.round(nats, 2), strict=True)
    )
    assert tally.nats == pytest.approx(sum(nats), rel=1e-6)
    assert tally.bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("documents", ["joined", "apart"])
def test_batches_and_ranks_do_not_matter(ours: GPT, dataset: str, documents: str) -> None:
    config = EvaluateConfig(split="train", documents=documents, stride=7)  # type: ignore[arg-type]
    found = evaluate_whole(ours, data=dataset, config=config)
    again = evaluate_whole(ours, data=dataset, config=config.model_copy(update={"batch_size": 1}))
    assert again.evaluation.cross_entropy == pytest.approx(found.evaluation.cross_entropy, rel=1e-6)
    text = found.documents
    windows = evaluation_windows(text.tokens.length, CONTEXT, 7)
    alone = score(ours, text, windows, batch_tokens=64)
    shares = [score(ours, text, windows, batch_tokens=64, rank=rank, world_size=3) for rank in range(3)]
    for share in shares[1:]:
        shares[0].merge(share)
    assert shares[0].nats == pytest.approx(alone.nats, rel=1e-14)
    for name in ("document_tokens", "position_tokens", "token_count", "bin_right", "costliest"):
        assert np.array_equal(getattr(shares[0], name), getattr(alone, name)), name


@pytest.mark.parametrize("nproc", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_of_their_own_score_the_same(theirs: GPT2LMHeadModel, dataset: str, nproc: int, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path / "weights")
    config = EvaluateConfig(split="train", documents="apart", stride=5)
    what = {"data": dataset} if nproc == 2 else {"text": TEXTS[0] * 9}
    alone = evaluate(str(tmp_path / "weights"), **what, config=config)  # type: ignore[arg-type]
    many = evaluate(str(tmp_path / "weights"), **what, config=config.model_copy(update={"nproc": nproc}))  # type: ignore[arg-type]
    assert many.cross_entropy == pytest.approx(alone.cross_entropy, rel=1e-6)
    assert (many.tokens, many.words, many.accuracy) == (alone.tokens, alone.words, alone.accuracy)
    assert not list(storage.jobs_home().iterdir())


@pytest.mark.slow
def test_what_a_rank_cannot_use_is_said_once(dataset: str, tmp_path: Path) -> None:
    model = reference(1, 1, 16, CONTEXT, 50257)
    model.save_pretrained(tmp_path / "weights")
    read = read_weights(str(tmp_path / "weights"))
    (tmp_path / "weights" / "config.json").unlink()  # between the launcher's look and the ranks'
    with pytest.raises(UserError, match=r"model\.safetensors without a config\.json"):
        evaluate_whole(read, data=dataset, config=EvaluateConfig(split="train", nproc=2))


def test_a_tally_is_what_was_written(ours: GPT, dataset: str, tmp_path: Path) -> None:
    tally = whole(ours, dataset)
    tally.write(tmp_path / "tally.npz")
    again = Tally.read(tmp_path / "tally.npz")
    assert np.array_equal(again.token_nats, tally.token_nats)
    assert again.nats == tally.nats


def test_parts_add_up_to_the_whole(ours: GPT, dataset: str) -> None:
    found = evaluate(ours, data=dataset, config=EvaluateConfig(split="train", documents="apart"))
    for name, rows in found.parts.items():
        assert sum(row["tokens"] for row in rows) == found.tokens, name
        assert sum(row["share"] for row in rows) == pytest.approx(1), name
        mean = sum(row["cross_entropy"] * row["tokens"] for row in rows) / found.tokens
        assert mean == pytest.approx(found.cross_entropy), name
    assert [row["name"] for row in found.parts["position"]] == ["1", "2 to 3", "4 to 7", "8 to 15", "16 to 24"]
    assert found.words == sum(len(text.split()) + 1 for text in TEXTS)  # each ends in white space
    assert found.word_perplexity == pytest.approx(math.exp(found.cross_entropy * found.tokens / (found.words or 0)))
    assert found.bits_per_token == pytest.approx(math.log2(found.perplexity))
    assert math.log2(found.byte_perplexity) == pytest.approx(found.bits_per_byte)
    dear = found.costliest["documents"]
    assert len(dear) == 20
    assert [row["cross_entropy"] for row in dear] == sorted((row["cross_entropy"] for row in dear), reverse=True)
    places = [row["nats"] for row in found.costliest["places"]]
    assert places == sorted(places, reverse=True)
    assert all(row["document"].endswith(".txt#0") for row in dear)


def trained(text: str) -> GPT:
    """A model that knows a text a little, so that it is sure of some tokens and right about some."""
    torch.manual_seed(2)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=CONTEXT))
    ids = torch.tensor(get_tokenizer().encode(text))[: 20 * CONTEXT + 1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(25):
        loss = model(ids[:-1].view(-1, CONTEXT), ids[1:].view(-1, CONTEXT)) / (len(ids) - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_accuracy_and_calibration_are_those_of_the_probabilities() -> None:
    text = "".join(TEXTS)
    model = trained(text)
    found = evaluate_whole(model, text=text)
    ids = torch.tensor(get_tokenizer().encode(text))
    top, right = [], []
    for begin in range(0, len(ids) - 1, CONTEXT):
        window = ids[begin : begin + CONTEXT + 1]
        with torch.no_grad():
            probability, likeliest = torch.softmax(model(window[None, :-1])[0].double(), -1).max(-1)
        top += probability.tolist()
        right += (likeliest == window[1:]).tolist()
    assert found.evaluation.accuracy == pytest.approx(np.mean(right))
    bins = (np.array(top) * BINS).astype(int)
    expected = [
        (int((bins == i).sum()), np.mean(np.array(top)[bins == i]), np.mean(np.array(right)[bins == i]))
        for i in range(BINS)
        if (bins == i).any()
    ]
    rows = calibration(found.tally)
    assert len(rows) > 5
    assert 0.1 < found.evaluation.accuracy < 0.95
    for row, each in zip(rows, expected, strict=True):
        assert (row["tokens"], row["probability"], row["right"]) == (
            each[0],
            *(pytest.approx(one, rel=1e-5) for one in each[1:]),
        )
    error = sum(count * abs(p - r) for count, p, r in expected) / len(top)
    assert found.evaluation.calibration_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_bfloat16_stays_within_its_rounding(architecture: Literal["gpt2", "qwen3"]) -> None:
    torch.manual_seed(3)
    model = GPT(ModelConfig(architecture=architecture, n_layer=2, n_head=2, n_embd=64, context_length=32))
    exact = evaluate(model, text="".join(TEXTS)).cross_entropy
    between: set[torch.dtype] = set()
    for block in model.h:
        block.register_forward_hook(lambda _block, given, result: between.update((given[0].dtype, result.dtype)))
    kept = {name: each.clone() for name, each in model.named_parameters() if each.ndim == 1 or name.startswith("wpe")}
    rounded = evaluate(
        to_precision(model, "bfloat16"), text="".join(TEXTS), config=EvaluateConfig(precision="bfloat16")
    )
    assert rounded.cross_entropy == pytest.approx(exact, rel=2e-3)
    assert rounded.cross_entropy != exact
    assert model.lm_head.weight.dtype == model.wte.weight.dtype == torch.bfloat16
    assert model.lm_head.weight is model.wte.weight
    assert between == {torch.float32}
    assert all(torch.equal(model.get_parameter(name), each) for name, each in kept.items())


def test_long_windows_are_scored_fewer_at_once() -> None:
    expected = {128: 1024, 1024: 8192, 2048: 8192, 3000: 6000, 40_960: 40_960}
    assert {context: tokens_at_once(0, context) for context in expected} == expected
    assert tokens_at_once(3, 40_960) == 3 * 40_960


@torch.no_grad()
def test_what_is_shown_of_a_token_is_what_the_model_says(ours: GPT) -> None:
    text = "naïve 東京 🙂 " * 5
    documents = documents_of_text(text, get_tokenizer())
    looks = look(ours, documents, 0, len(documents.tokens.read(0, 10_000)))
    assert "".join(each.text for each in looks) == text
    ids = [50256, *get_tokenizer().encode(text)]
    assert len(looks) == len(ids) - 1 > CONTEXT  # so that the window moved
    for place in (0, 3, CONTEXT - 1):
        probabilities = torch.softmax(ours(torch.tensor([ids[: place + 1]]))[0, -1], -1)
        target = ids[place + 1]
        assert looks[place].probability == pytest.approx(float(probabilities[target]), rel=1e-4)
        assert looks[place].rank == int((probabilities > probabilities[target]).sum()) + 1
        best, tokens = probabilities.topk(5)
        assert [name for name, _ in looks[place].alternatives] == [get_tokenizer().decode([i]) for i in tokens.tolist()]
        assert [share for _, share in looks[place].alternatives] == pytest.approx(best.tolist(), rel=1e-4)


@pytest.mark.parametrize(("text", "words"), [("", 1), ("a", 1), (" a  b\n", 4), ("a\u3000b\tc", 3)])
def test_words_are_counted_as_the_harness_does(text: str, words: int) -> None:
    assert count_words(text) == words


def test_a_text_of_one_token_is_scored_apart(ours: GPT) -> None:
    found = evaluate(ours, text="a", config=EvaluateConfig(documents="apart"))
    assert (found.tokens, found.bytes) == (1, 1)
    with torch.no_grad():
        logits = ours(torch.tensor([[get_tokenizer().end_of_text]]))[0, -1]
    [token] = get_tokenizer().encode("a")
    assert found.cross_entropy == pytest.approx(-float(logits.log_softmax(0)[token]), abs=1e-5)
    with pytest.raises(UserError, match="1 token: nothing has a token before it"):
        evaluate(ours, text="a")


def test_two_models_of_other_contexts_are_compared_in_the_same_windows(tmp_path: Path, dataset: str) -> None:
    read = []
    for context in (16, 24):
        torch.manual_seed(context)
        made = GPT2LMHeadModel(GPT2Config(n_positions=context, n_embd=16, n_layer=1, n_head=1))
        made.save_pretrained(tmp_path / str(context))
        read.append(read_weights(str(tmp_path / str(context))))
    assert in_one_window(EvaluateConfig(), *read).context_length == 16
    assert in_one_window(EvaluateConfig(context_length=8), *read).context_length == 8
    assert in_one_window(EvaluateConfig(), read[1], read[1]).context_length == 0
    config = in_one_window(EvaluateConfig(split="train", max_tokens=64), *read)
    first, second = (evaluate_whole(each, data=dataset, config=config) for each in read)
    assert np.array_equal(first.tally.position_tokens[:17], second.tally.position_tokens[:17])
    assert first.evaluation.windows == second.evaluation.windows
