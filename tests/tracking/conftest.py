"""An empty MLflow for each test that asks for it, and datasets to track."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gptpipe.config import DataConfig
from gptpipe.config.settings import make_home, settings
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables in a SQLite file: to make them takes five seconds, a test."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def database(clean_settings: None, empty_database: Path) -> None:
    make_home(settings().home_path)
    shutil.copy(empty_database, settings().home_path / "mlflow.db")


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
        (folder / f"{number}.txt").write_text(f"number {number} of the many\n" * (3 + number % 5))
    config = DataConfig(corpus=[str(folder)], validation=0.5)
    return open_dataset(tokenize(config, str(folder.parent / "many-out")).dataset)
