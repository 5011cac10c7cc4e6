"""New text of the same nature passes, and what changed its length, script, words or amount is named."""

from __future__ import annotations

import inspect
import random
import textwrap
from pathlib import Path

import pytest

from gptpipe.config import DataConfig, DriftConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.drift import Drift, drift
from gptpipe.dataset.news import news_since
from gptpipe.dataset.stream import TokenStream
from tests.tokenizer.test_huggingface import german

ENGLISH = "the house by the river was old and nobody had lived in it since the war but the garden grew on as it liked"
OTHER = "prices of copper fell again while shares in shipping rose and traders expect the bank to cut its rate by June"
GERMAN = "das Haus am Fluss war alt und niemand hatte seit dem Krieg darin gewohnt aber der Garten wuchs weiter wie er"
RUSSIAN = "дом у реки был старым и никто не жил в нём после войны но сад рос дальше как хотел и никто его не трогал"


def prose(words: str, seed: int, length: int) -> str:
    return " ".join(random.Random(seed).choices(words.split(), k=length))


def dataset_of(folder: Path, texts: list[str]) -> Dataset:
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    config = DataConfig(corpus=[{"url": str(folder), "name": "words"}], validation=0)
    return open_dataset(tokenize(config, str(folder.parent / "out")).dataset)


def drift_of(tmp_path: Path, old: list[str], now: list[str], **bounds: float) -> Drift:
    earlier, dataset = dataset_of(tmp_path / "old", old), dataset_of(tmp_path / "now", now)
    cache = TokenCache(tmp_path / "cache")
    streams = TokenStream(earlier, "train", cache), TokenStream(dataset, "train", cache)
    return drift(*streams, news_since(earlier, dataset, "train"), DriftConfig(**bounds))


OLD = [prose(ENGLISH, seed, 60 + seed) for seed in range(60)]


@pytest.mark.parametrize("new", [1, 5, 60])
def test_more_of_the_same_passes_however_little_it_is(tmp_path: Path, new: int) -> None:
    measured = drift_of(tmp_path, OLD, [*OLD, *(prose(ENGLISH, 100 + seed, 80) for seed in range(new))])
    assert measured.reasons == ""
    divergence = float(measured.measures[-1].now)
    assert divergence < 0.05


@pytest.mark.parametrize(
    ("new", "named"),
    [
        ([prose(RUSSIAN, seed, 80) for seed in range(20)], "script of its letters Cyrillic 100%, 100% other"),
        ([prose(GERMAN, seed, 80) for seed in range(20)], "divergence of token frequencies"),
        ([inspect.getsource(textwrap)] * 1, "divergence of token frequencies"),
        ([prose(ENGLISH, seed, 3) for seed in range(20)], "mean length of a document 4 tokens"),
        ([prose(ENGLISH, seed, 3000) for seed in range(5)], "mean length of a document 3,"),
    ],
)
def test_text_of_another_nature_is_named(tmp_path: Path, new: list[str], named: str) -> None:
    measured = drift_of(tmp_path, OLD, [*OLD, *new])
    assert named in measured.reasons
    failed = [row for row in measured.table.splitlines() if row.endswith("| **no** |")]
    assert len(failed) == measured.reasons.count("; ") + 1


def test_texts_of_two_tokenizers_compare_in_all_but_their_tokens(tmp_path: Path) -> None:
    texts = [prose(ENGLISH, seed, 80) for seed in range(20)]
    earlier = dataset_of(tmp_path / "old", texts)
    german(tmp_path / "german")
    config = DataConfig(
        corpus=[{"url": str(tmp_path / "old"), "name": "words"}], validation=0, tokenizer=str(tmp_path / "german")
    )
    now = open_dataset(tokenize(config, str(tmp_path / "other")).dataset)
    streams = (TokenStream(each, "train", TokenCache(tmp_path / "cache")) for each in (earlier, now))
    measured = drift(*streams, news_since(earlier, now, "train"), DriftConfig())
    assert [each.name for each in measured.measures][-1] == "script of its letters"
    assert measured.reasons == ""


def test_text_that_is_missing_is_named_and_every_bound_can_be_raised(tmp_path: Path) -> None:
    now = [*OLD[:10], prose(RUSSIAN, 1, 3000)]
    measured = drift_of(tmp_path / "a", OLD, [*OLD[:20], prose(ENGLISH, 900, 90)])
    assert measured.reasons.startswith("text in all 0.01 MB, before 0.0")
    assert "at least 50% of before" in measured.reasons
    bounds = {"max_shrink": 1.0, "max_length_factor": 1000, "max_script_change": 1.0, "max_divergence": 0.7}
    assert drift_of(tmp_path / "b", OLD, now, **bounds).reasons == ""
    assert drift_of(tmp_path / "c", OLD, now).reasons.count("; ") == 2  # length, script and words
