"""Datasets to track."""

from __future__ import annotations

import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("one two three four five\n" * 50)
    return open_dataset(tokenize(DataConfig(corpus=[str(file)]), str(file.parent / "out")).dataset)


@pytest.fixture(scope="module")
def many_documents(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """With enough documents in validation for an interval."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"number {number} of the many\n" * (1 + number % 3))
    config = DataConfig(corpus=[str(folder)], validation=0.5)
    return open_dataset(tokenize(config, str(folder.parent / "many-out")).dataset)
