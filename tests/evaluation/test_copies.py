"""Pieces of the training text in samples: every one is found, with its whole length and its document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.evaluation.copies import find_copies
from gptpipe.generation.degenerate import is_blank
from gptpipe.generation.generate import Sample
from gptpipe.tokenizer import Tokenizer, get_tokenizer

TOKENIZER = get_tokenizer("gpt2")


def sample_of(tokens: list[int], prompt: str = "say: ") -> Sample:
    return Sample(prompt, prompt + TOKENIZER.decode(tokens), tokens)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    """Few different words, so that short copies are everywhere, and a text of blank lines."""
    folder = tmp_path_factory.mktemp("copies")
    draws = np.random.default_rng(2)
    for number in range(40):
        words = draws.choice(["red", "green", "blue", "one"], 120)
        (folder / f"{number}.txt").write_text(f"text {number}: {' '.join(words)} the end of {number}")
    (folder / "blank.txt").write_text("\n \n" * 200)
    made = tokenize(DataConfig(corpus=[{"url": str(folder), "name": "words"}], validation=0.1), str(folder / "out"))
    return TokenStream(open_dataset(made.dataset), "train", TokenCache(folder / "cache"))


def longest_by_hand(sample: list[int], stream: np.ndarray, tokenizer: Tokenizer) -> int:
    """Length of the longest piece of a sample that stands in the stream and is not blank, by comparing all of it."""
    best = 0
    for start in range(len(sample)):
        alive, length = np.arange(len(stream)), 0
        while start + length < len(sample):
            alive = alive[alive + length < len(stream)]
            alive = alive[stream[alive + length] == sample[start + length]]
            if not len(alive):
                break
            length += 1
        if length > best and not is_blank(tokenizer.decode(sample[start : start + length])):
            best = length
    return best


@pytest.mark.parametrize("least", [2, 3, 8, 9, 21])
def test_every_copy_is_found_with_its_whole_length(stream: TokenStream, least: int) -> None:
    draws = np.random.default_rng(least)
    everything = stream.read(0, stream.length)
    for _ in range(12 if least > 3 else 3):
        tokens: list[int] = []
        while len(tokens) < 60:  # pieces of the text, and what is not in it
            place, length = int(draws.integers(stream.length - 40)), int(draws.integers(1, 40))
            tokens += everything[place : place + length].tolist() + draws.integers(50_000, size=2).tolist()
        truth = longest_by_hand(tokens, everything, TOKENIZER)
        copies = find_copies([sample_of(tokens)], stream, TOKENIZER, least)
        assert [copy.tokens for copy in copies] == ([truth] if truth >= least else [])


def test_a_copy_names_its_text_its_document_and_what_it_continues(stream: TokenStream) -> None:
    everything = stream.read(0, stream.length)
    begin = stream.length // 2
    noise = [4321, 1234, 999]
    samples = [
        sample_of([*noise, *everything[begin : begin + 50].tolist(), *noise]),
        sample_of(noise * 9),
        sample_of(everything[begin : begin + 70].tolist(), prompt="go on: "),
    ]
    first, second = find_copies(samples, stream, TOKENIZER, 20)
    assert (first.tokens, first.prompt, second.tokens, second.prompt) == (70, "go on: ", 50, "say: ")
    assert second.text == TOKENIZER.decode(everything[begin : begin + 50].tolist())
    corpus, _, name = first.document.partition(":")
    assert corpus == "words"
    folder = Path(stream.dataset.url).parents[1]
    assert (
        first.text.split(TOKENIZER.decode([TOKENIZER.end_of_text]))[0][:40]
        in (folder / name.partition("#")[0]).read_text()
    )


def test_what_says_nothing_or_is_shorter_is_no_copy(stream: TokenStream) -> None:
    blank = TOKENIZER.encode("\n \n" * 40)
    everything = stream.read(0, stream.length).tolist()
    assert any(everything[place : place + 60] == blank[:60] for place in range(len(everything)))
    assert find_copies([sample_of(blank)], stream, TOKENIZER, 10) == []
    assert find_copies([sample_of(everything[100:140])], stream, TOKENIZER, 41) == []
    assert find_copies([sample_of([])], stream, TOKENIZER, 10) == []
