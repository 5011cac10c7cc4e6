"""Two models on the same documents; with two tokenizers they compare per byte."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptpipe import storage
from gptpipe.config import DataConfig, EvaluateConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.evaluation.documents import documents_of_split
from gptpipe.evaluation.once import evaluate_against
from gptpipe.tokenizer import get_tokenizer

WORDS = [
    "Übung",
    "macht",
    "den",
    "Meister,",
    "auch",
    "wenn",
    "der",
    "Weg",
    "zur",
    "Straße",
    "weit",
    "ist",
    "—",
    "東京",
    "🙂",
    "",
]


def write_uniform(folder: Path, vocabulary: int) -> str:
    """A model that finds all tokens equally likely: its loss is the logarithm of their number."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of words, and a second tokenizer of 400 tokens, with their two uniform models."""
    folder = tmp_path_factory.mktemp("against")
    draws = np.random.default_rng(1)
    (folder / "text").mkdir()
    for number in range(40):
        text = " ".join(draws.choice(WORDS, int(draws.integers(5, 60))))
        (folder / "text" / f"{number}.txt").write_text(text)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(WORDS)] * 20, vocab_size=400, special_tokens=["<|endoftext|>"])
    other = folder / "other"
    write_uniform(other, trained.get_vocab_size())
    fast = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(other)
    write_uniform(folder / "own", 50257)
    torch.manual_seed(2)
    shape = GPT2Config(vocab_size=50257, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(shape).save_pretrained(folder / "third")
    config = DataConfig(corpus=[{"url": str(folder / "text"), "name": "words"}], validation=0.5)
    tokenize(config, str(folder / "data"))
    return folder


@pytest.mark.parametrize("most", [0, 200])
def test_models_of_two_tokenizers_compare_per_byte(place: Path, most: int) -> None:
    config = EvaluateConfig(max_tokens=most)
    own, other, data = str(place / "own"), str(place / "other"), str(place / "data")
    evaluation = evaluate_against(own, other, data=data, config=config, out=str(place / "out"))
    assert evaluation.against is not None
    comparison, before = evaluation.against.comparison, evaluation.against.evaluation

    dataset, theirs = open_dataset(data), get_tokenizer(str(place / "other"))
    documents = documents_of_split(TokenStream(dataset, "validation", TokenCache()), dataset.load_tokenizer())
    texts = {name: (place / "text" / name.partition(":")[2].partition("#")[0]).read_text() for name in documents.names}
    if most:
        assert before.documents == evaluation.documents < len(texts)
    else:
        size = sum(len(text.encode()) for text in texts.values())
        ours = sum(len(dataset.load_tokenizer().encode(text)) for text in texts.values())
        others = sum(len(theirs.encode(text)) for text in texts.values())
        assert (evaluation.tokens, before.tokens, evaluation.bytes, before.bytes) == (ours, others, size, size)
        expected = (ours * math.log(50257) - others * math.log(theirs.vocab_size)) / size
        assert comparison.difference == pytest.approx(expected, rel=1e-6)
        assert comparison.units_per_token == pytest.approx(size / ours)
    assert before.cross_entropy == pytest.approx(math.log(theirs.vocab_size), rel=1e-5)
    assert evaluation.bytes == before.bytes
    assert comparison.unit == "byte"
    assert f"{abs(comparison.difference):.4f} nats per byte" in comparison.sentence
    kept = storage.list_files(str(place / "out"))
    again = evaluate_against(own, other, data=data, config=config, out=str(place / "out"))
    assert (again.already_done, again.against is not None and again.against.comparison) == (True, comparison)
    assert storage.list_files(str(place / "out")) == kept


@pytest.mark.parametrize("ending", ["json", "parquet", "html"])
@pytest.mark.parametrize("damage", ["flipped", "zeros", "cut", "gone"])
def test_what_is_kept_and_damaged_is_never_compared_and_made_again(
    place: Path, tmp_path: Path, ending: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    own, third, data, out = str(place / "own"), str(place / "third"), str(place / "data"), tmp_path / "out"

    def compared() -> tuple[Any, Any]:
        made = evaluate_against(own, third, data=data, config=EvaluateConfig(), out=str(out))
        return made.cross_entropy, made.against and made.against.comparison

    first, draw = compared(), random.Random(2)
    files = sorted(out.glob(f"*.{ending}"))
    assert len(files) == 2
    for file in files:
        kept = file.read_bytes()
        for _ in range(10 if damage == "flipped" else 1):
            changed = bytearray(kept)
            changed[draw.randrange(len(kept) - 2)] ^= 1 << draw.randrange(7)
            if damage == "gone":
                file.unlink()
            else:
                contents = {"flipped": bytes(changed), "zeros": bytes(len(kept)), "cut": kept[: len(kept) // 2]}
                file.write_bytes(contents[damage])
            caplog.clear()
            assert compared() == first
            assert str(file) in caplog.text or (ending, damage) == ("json", "gone")
            caplog.clear()
            assert compared() == first
            assert not caplog.text


def test_new_documents_are_compared_apart_from_old_ones(place: Path) -> None:
    own, data = str(place / "own"), str(place / "data")
    stream = TokenStream(open_dataset(data), "validation", TokenCache())
    names = documents_of_split(stream, stream.dataset.load_tokenizer()).names
    arguments: Any = {"data": data, "config": EvaluateConfig(), "out": str(place / "out")}
    evaluation = evaluate_against(own, str(place / "third"), new=set(names[:4]), **arguments)
    assert evaluation.against is not None
    ages = evaluation.against.ages
    assert {name: each.documents for name, each in ages.items()} == {"new text": 4, "old text": len(names) - 4}
    assert ages["old text"].unit == "token"
    whole = evaluation.against.comparison.difference
    assert min(each.difference for each in ages.values()) <= whole <= max(each.difference for each in ages.values())
    nothing = evaluate_against(own, str(place / "third"), new=set(), **arguments)
    assert nothing.against is not None
    assert nothing.against.ages == {}  # all of it is old: that is the comparison itself
