"""A dataset with many small row groups, and its stream as any Parquet reader finds it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gptpipe.config import DataConfig
from gptpipe.data.build import tokenize
from gptpipe.data.dataset import Dataset, open_dataset

GROUP_TOKENS = 4096
END = 50_256
WORDS = [
    "the",
    "a",
    "of",
    "red",
    "green",
    "blue",
    "house",
    "river",
    "1",
    "22",
    "def",
    "return",
    "import",
    "self",
    "=",
    "(",
    ")",
    "\n",
    "\n\n",
    "",
    "",
    "",
    "yes",
    "no",
    "maybe",
]


@dataclass(frozen=True)
class Sample:
    """A dataset and what its training stream must be.

    Attributes:
        tokens: the stream, separators included.
        corpora: corpus → (begin, end) in the stream.
        config: what it was made of.
        out: the folder it was made below.
    """

    dataset: Dataset
    tokens: np.ndarray
    corpora: dict[str, tuple[int, int]]
    config: DataConfig
    out: str


def stream_of(dataset: Dataset, split: str = "train") -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """The stream and where each corpus lies in it, from the index and the shards read as plain Parquet."""
    tokens: list[int] = []
    corpora: dict[str, tuple[int, int]] = {}
    for entry in pq.read_table(f"{dataset.url}/shards.parquet").to_pylist():
        if entry["split"] == split:
            begin = len(tokens)
            for row in pq.read_table(f"{dataset.url}/{entry['path']}").to_pylist():
                tokens += row["tokens"] + ([END] if row["last"] else [])
            corpora[entry["corpus"]] = (corpora.get(entry["corpus"], (begin, 0))[0], len(tokens))
    return np.array(tokens), corpora


def make_sample(root: Path, sizes: dict[str, int], validation: float = 0.1) -> Sample:
    """Corpora of so many short documents each, in row groups of 4096 tokens."""
    draw = random.Random(5)
    for name, documents in sizes.items():
        (root / name).mkdir(parents=True)
        for i in range(documents):
            words = draw.choices(WORDS, k=draw.randint(1, 300))
            (root / name / f"{i}.txt").write_text(f"{name} {i} " + " ".join(words))
    corpora: Any = [{"url": str(root / name), "name": name} for name in sizes]
    config = DataConfig(corpus=corpora, validation=validation, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptpipe.data.rows.ROW_GROUP_TOKENS", GROUP_TOKENS)
        made = tokenize(config, str(root / "out"))
    dataset = open_dataset(made.dataset)
    return Sample(dataset, *stream_of(dataset), config, str(root / "out"))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Six corpora of about 40,000 tokens, so six shards of about ten row groups."""
    return make_sample(tmp_path_factory.mktemp("sample"), {f"c{i}": 230 + 20 * i for i in range(6)})
