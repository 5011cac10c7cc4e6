"""How much of an evaluation set stands in the training text, told by what documents say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiktoken

from gptpipe.config import DataConfig, EvaluateConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.overlap import overlap
from gptpipe.errors import UserError
from gptpipe.pipeline.overlap import check_overlap
from gptpipe.tokenizer import get_tokenizer, references
from tests.fixtures.corpora import GPT2

END = "<|endoftext|>"
APART = [f"this is text {number} of its own: " + "again and " * number for number in range(40)]


def make(folder: Path, texts: list[str], **options: object) -> Dataset:
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    config = DataConfig(corpus=[{"url": str(folder), "name": folder.name}], **options)
    return open_dataset(tokenize(config, str(folder.parent / "datasets")).dataset)


def length(text: str) -> int:
    """Tokens with the separator."""
    return len(get_tokenizer("gpt2").encode(text)) + 1


def test_documents_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    """They lie elsewhere under other names, and one differs in its last word."""
    scored = make(tmp_path / "scored", [*APART[:9], APART[9] + "x"], validation=0.9999)
    trained = make(tmp_path / "trained", ["only here", *reversed(APART[5:30])], validation=0.0)
    there = overlap(scored, "validation", trained)
    both = APART[5:9]
    assert (there.documents, there.tokens) == (4, sum(map(length, both)))
    held_out = scored.total("tokens", "validation") + scored.total("documents", "validation")
    assert there.of_tokens == held_out > there.tokens
    assert there.examples == ["scored:8.txt#0", "scored:7.txt#0", "scored:6.txt#0"]
    assert "4 documents of" in there.sentence


def test_the_own_validation_split_is_apart_even_where_texts_are_there_twice(tmp_path: Path) -> None:
    twice = make(tmp_path / "twice", [*APART, *APART], validation=0.3)
    there = overlap(twice, "validation", twice)
    assert (there.documents, there.share) == (0, 0.0)
    assert there.of_tokens > 0
    assert check_overlap(EvaluateConfig(), twice.url, str(tmp_path / "out")) is None


def test_much_is_refused_little_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scored = make(tmp_path / "scored", APART[:20], validation=0.9999)
    trained = make(tmp_path / "trained", APART[18:], validation=0.1)
    config = EvaluateConfig(data=scored.url)
    out = str(tmp_path / "evaluations")
    with pytest.raises(UserError, match=r"stands in the training text word for word: \d documents? of") as refusal:
        check_overlap(config, trained.url, out)
    assert scored.id in str(refusal.value)
    assert "evaluate.max_overlap" in str(refusal.value)
    with caplog.at_level(logging.WARNING):
        there = check_overlap(config.model_copy(update={"max_overlap": 1.0}), trained.url, out)
    assert there is not None
    assert 0.1 < there.share < 0.3
    assert "word for word" in caplog.text


def test_it_is_measured_once(tmp_path: Path) -> None:
    """With the shards gone, the answer is still there."""
    scored = make(tmp_path / "scored", APART[:20], validation=0.3)
    trained = make(tmp_path / "trained", APART[20:], validation=0.3)
    config, out = EvaluateConfig(data=scored.url), str(tmp_path / "evaluations")
    first = check_overlap(config, trained.url, out)
    for shard in Path(trained.url).rglob("*.parquet"):
        if shard.name not in ("shards.parquet", "sources.parquet"):
            shard.unlink()
    assert check_overlap(config, trained.url, out) == first


def test_another_tokenizer_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {**GPT2._mergeable_ranks, b"zzyzx": 50_300}
    other = {"name": "other", "pat_str": r"\S+|\s+", "mergeable_ranks": ranks, "special_tokens": {END: 50_301}}
    tiktoken.list_encoding_names()  # fills the registry
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "other", lambda: other)
    try:
        scored = make(tmp_path / "scored", APART[:20], validation=0.9999, tokenizer="other")
        trained = make(tmp_path / "trained", APART[20:], validation=0.1)
        with pytest.raises(UserError, match="made with tokenizer other, the training text with gpt2"):
            check_overlap(EvaluateConfig(data=scored.url), trained.url, str(tmp_path / "out"))
    finally:
        references._of_tiktoken.cache_clear()
        tiktoken.registry.ENCODINGS.pop("other", None)
