"""Proves that `inspect` counts a known dataset right, and that it reads well as text and as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset import inspect as inspect_module
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.inspect import Inspection, describe, inspect
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.tokenizer import get_tokenizer
from tests.fixtures.datasets import Sample, make_long_document

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))
# documents by corpus; lengths in tokens are 1, 2, 3, 4, 7, 8, 9 and so on
TEXTS = {
    "small": [" a" * n + " b" for n in (0, 1, 2, 3, 6, 7, 8)],
    "large": [" é" * n + f" number {n}" for n in range(20, 60)] + ["", " a b"],
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two corpora of which every document is known; one file is empty."""
    root = tmp_path_factory.mktemp("known")
    for corpus, texts in TEXTS.items():
        (root / corpus).mkdir()
        for i, text in enumerate(texts):
            (root / corpus / f"{i:02}.txt").write_text(text, "utf-8")
    corpora: Any = [{"url": str(root / name), "name": name} for name in TEXTS]
    config = DataConfig(corpus=corpora, validation=0.3, drop_duplicates=True, workers=1)
    return tokenize(config, str(root / "out")).dataset


@pytest.fixture(scope="module")
def documents() -> dict[str, list[list[int]]]:
    """The tokens of every document that is kept: " a b" of the second corpus is a copy."""
    tokenizer = get_tokenizer("gpt2")
    kept = {"small": TEXTS["small"], "large": TEXTS["large"][:-2]}
    return {name: [list(map(int, tokenizer.encode(text))) for text in texts] for name, texts in kept.items()}


@pytest.fixture(scope="module")
def found(known: str) -> Inspection:
    return inspect(known)


def test_totals(found: Inspection, documents: dict[str, list[list[int]]], known: str) -> None:
    every = [tokens for each in documents.values() for tokens in each]
    dataset = open_dataset(known)
    assert (found.dataset, found.id, found.tokenizer) == (known, dataset.id, "gpt2")
    assert found.documents == len(every) == 47
    assert found.tokens == found.tokens_read == sum(map(len, every))
    assert found.shards == len(dataset.index())
    size = sum(len(text.encode()) for texts in TEXTS.values() for text in texts) - len(" a b")
    assert found.bytes_per_token == pytest.approx(size / found.tokens)
    assert set(found.splits) == {"train", "validation"}
    for name, total in (("documents", 47), ("tokens", found.tokens), ("bytes", size), ("shards", found.shards)):
        assert sum(split[name] for split in found.splits.values()) == total
    assert sum(found.dropped.values()) == 2


def test_shares_of_the_corpora(found: Inspection, documents: dict[str, list[list[int]]]) -> None:
    sizes = {name: sum(map(len, each)) for name, each in documents.items()}
    assert found.corpora == {name: pytest.approx(size / found.tokens) for name, size in sizes.items()}


def test_lengths_and_their_histogram(found: Inspection, documents: dict[str, list[list[int]]]) -> None:
    lengths = sorted(len(tokens) for each in documents.values() for tokens in each)
    assert found.lengths["0%"] == lengths[0] == 1
    assert found.lengths["100%"] == lengths[-1]
    assert found.lengths["50%"] == lengths[23]
    for name, length in found.lengths.items():
        assert length == np.quantile(lengths, int(name[:-1]) / 100, method="nearest")
    assert sum(count for _, _, count in found.histogram) == found.documents
    counted = Counter(1 << (length.bit_length() - 1) for length in lengths)
    assert {low: count for low, _, count in found.histogram if count} == counted
    for (low, high, _), (following, _, _) in zip(found.histogram, found.histogram[1:], strict=False):
        assert high == 2 * low - 1
        assert following == high + 1


def test_frequent_tokens(found: Inspection, documents: dict[str, list[list[int]]]) -> None:
    counts = Counter(token for each in documents.values() for tokens in each for token in tokens)
    decode = get_tokenizer("gpt2").decode
    assert len(found.frequent) <= 20
    assert [share for _, share in found.frequent] == sorted((share for _, share in found.frequent), reverse=True)
    best = counts.most_common(20)
    assert [share for _, share in found.frequent] == [pytest.approx(n / found.tokens) for _, n in best]
    assert found.frequent[0][0] == decode([best[0][0]]) == " é"
    shares = {decode([token]): n / found.tokens for token, n in counts.items()}
    for text, share in found.frequent:
        assert share == pytest.approx(shares[text])


def test_excerpts_are_how_documents_begin(found: Inspection) -> None:
    assert 1 <= len(found.excerpts) <= 3
    assert len(set(found.excerpts)) == len(found.excerpts)
    texts = {f"{i:02}.txt#0": {corpus[i] for corpus in TEXTS.values() if i < len(corpus)} for i in range(42)}
    tokenizer = get_tokenizer("gpt2")
    for identity, text in found.excerpts:
        assert text in {tokenizer.decode(list(tokenizer.encode(whole))[:60]) for whole in texts[identity]}


def test_as_text(found: Inspection) -> None:
    text = describe(found)
    assert found.dataset in text
    assert "47 documents" in text
    assert f"{found.tokens:,} tokens (gpt2)" in text
    assert f"{found.bytes_per_token:.2f} bytes per token" in text
    assert "left out: " in text
    assert "duplicate" in text
    for name, share in found.corpora.items():
        assert f"{share:.1%}  {name}" in text
    assert "tokens read" not in text  # all of it was
    assert text.count("█") >= len([row for row in found.histogram if row[2]])
    for identity, begin in found.excerpts:
        assert f"{identity}: {begin!r}" in text


def test_the_command_says_the_same_as_text_and_as_json(found: Inspection, known: str) -> None:
    for place in (known, str(Path(known).parent)):
        done = subprocess.run([GPTPIPE, "inspect", "--json", place], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(json.dumps(found.as_dict()))
    done = subprocess.run([GPTPIPE, "inspect", known], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == describe(found).split()


def test_no_dataset_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run([GPTPIPE, "inspect", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no dataset" in done.stderr
    assert "Traceback" not in done.stderr


def test_of_a_large_dataset_only_so_much_is_read_as_is_promised(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = inspect(sample.dataset.url)
    monkeypatch.setattr(inspect_module, "LOOKED_AT", whole.tokens // 3)
    part = inspect(sample.dataset.url)
    assert part.tokens == whole.tokens == whole.tokens_read
    assert part.documents == whole.documents == sum(count for _, _, count in whole.histogram)
    assert 0 < part.tokens_read <= 1.2 * whole.tokens / 3
    assert "tokens read)" in describe(part)
    assert (part.corpora, part.splits, part.bytes_per_token) == (whole.corpora, whole.splits, whole.bytes_per_token)
    shares = dict(whole.frequent)
    for text, share in part.frequent[:10]:
        assert share == pytest.approx(shares[text], rel=0.2)


def test_a_damaged_shard_is_refused_by_name(known: str, tmp_path: Path) -> None:
    shutil.copytree(known, tmp_path / "copy")
    shard = next((tmp_path / "copy" / "train").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged") as caught:
        inspect(str(tmp_path / "copy"))
    assert caught.value.where == str(shard)


def test_a_document_in_several_shards_is_one_document(tmp_path: Path) -> None:
    """A file larger than `shard_megabytes` is cut into ranges; it stays one document of its whole length."""
    made, long = make_long_document(tmp_path)
    found = inspect(made.url)
    assert found.documents == 31
    assert found.shards >= 4
    longest = len(get_tokenizer("gpt2").encode(long.read_text()))
    assert found.lengths["100%"] == longest
    assert sum(count for _, _, count in found.histogram) == 31
    names = [name for name, _ in found.excerpts]
    assert len(names) == len(set(names))
    begins = {Path(name.rsplit("#", 1)[0]).name: text for name, text in found.excerpts}
    if long.name in begins:
        assert long.read_text().startswith(begins[long.name])


def test_a_corpus_that_is_only_held_out_is_listed_too(tmp_path: Path) -> None:
    """And the training stream can be opened: one document falls into either split."""
    for i in range(20):
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / "many" / f"{i}.txt").write_text(f"text number {i} " * 5)
    seen = set()
    for attempt in range(12):
        one = tmp_path / f"one-{attempt}"
        one.mkdir()
        (one / "a.txt").write_text(f"a corpus of one document {attempt}")
        corpora: Any = [{"url": str(tmp_path / "many"), "name": "many"}, {"url": str(one), "name": "one"}]
        made = tokenize(DataConfig(corpus=corpora, validation=0.5, workers=1), str(tmp_path / "out"))
        found = inspect(made.dataset)
        assert set(found.corpora) == {"many", "one"}
        dataset = open_dataset(made.dataset)
        for split in ("train", "validation"):
            stream = TokenStream(dataset, split, TokenCache(tmp_path / "cache", 10**12))
            assert stream.corpus_starts[-1] == stream.length
            assert len(stream.corpus_starts) == len(stream.corpora) + 1
            seen.add((split, "one" in stream.corpora))
        if len(seen) == 4:
            break
    assert len(seen) == 4


def test_no_document_is_shown_twice(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"this is {name}")
    config = DataConfig(corpus=[str(tmp_path / "texts")], validation=0.5)
    found = inspect(tokenize(config, str(tmp_path / "out")).dataset)
    assert sorted(text for _, text in found.excerpts) == ["this is a", "this is b"]
