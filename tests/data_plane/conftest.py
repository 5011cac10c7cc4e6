"""What several tests of the data plane use: datasets and their true streams, web servers, threads, loaders."""

from __future__ import annotations

import http.server
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.loader import TrainLoader
from gptpipe.dataset.stream import TokenStream

GROUP_TOKENS = 4096
END = 50_256
WORDS = ["the", "a", "of", "red", "green", "blue", "house", "river", "1", "22", "yes", "no", "maybe"]
WORDS += ["def", "return", "import", "self", "=", "(", ")", "\n", "\n\n", "", "", ""]


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
        patch.setattr("gptpipe.dataset.rows.ROW_GROUP_TOKENS", GROUP_TOKENS)
        made = tokenize(config, str(root / "out"))
    dataset = open_dataset(made.dataset)
    return Sample(dataset, *stream_of(dataset), config, str(root / "out"))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Six corpora of about 40,000 tokens, so six shards of about ten row groups."""
    return make_sample(tmp_path_factory.mktemp("sample"), {f"c{i}": 230 + 20 * i for i in range(6)})


def make_long_document(root: Path) -> tuple[Dataset, Path]:
    """A dataset of 31 documents, one of which is cut into ranges, and that one's file."""
    folder = root / "text"
    folder.mkdir()
    long = folder / "long.txt"
    long.write_text("".join(f"line {i} of a long text\n" for i in range(90_000)))
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"a short one, number {i}, to be held out or not")
    config = DataConfig(corpus=[str(folder)], validation=0.3, shard_megabytes=1, workers=1)  # type: ignore[list-item]
    return open_dataset(tokenize(config, str(root / "out")).dataset), long


@pytest.fixture
def closing() -> Iterator[list[TrainLoader]]:
    """Loaders that are closed at the end."""
    loaders: list[TrainLoader] = []
    yield loaders
    for each in loaders:
        each.close()


@contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a web server of this machine that answers with `handler`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_threads(*works: Callable[[], object]) -> list[str]:
    """Do these at once; the traceback of each that failed, which a thread would keep to itself."""
    failed: list[str] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            failed.append(traceback.format_exc())

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def read_anywhere(stream: TokenStream, tokens: np.ndarray, length: int, until: float, seed: int) -> None:
    """Read stretches of a stream at random until a time of the monotonic clock; each must be what `tokens` says."""
    draw = np.random.default_rng(seed)
    while time.monotonic() < until:
        start = int(draw.integers(0, len(tokens) - length))
        assert np.array_equal(stream.read(start, start + length), tokens[start : start + length])
