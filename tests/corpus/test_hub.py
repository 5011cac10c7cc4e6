"""Proves that hf:// datasets are listed and read, from a server that speaks the hub's protocol: there is no network."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.fixtures.corpora import build, contents, some_text
from tests.fixtures.datasets import serving
from tests.fixtures.hub import gptpipe_with_hub, hub_of

FILES = {
    "README.md": b"# A dataset\n\nof three files.\n",
    "data/lines.jsonl": b"".join(json.dumps({"text": some_text(i)}).encode() + b"\n" for i in range(20)),
    "data/large.txt": some_text(1, 1_300_000).encode(),
}
HUB = hub_of("datasets/someone/texts", FILES)


def tokenized(tmp_path: Path, url: str, corpus: str, *more: str) -> subprocess.CompletedProcess[str]:
    return gptpipe_with_hub(url, tmp_path / "hf", "tokenize", "--corpus", corpus, *more, "--out", str(tmp_path / "out"))


def test_a_dataset_of_the_hub_is_the_dataset_of_its_files(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_bytes(content)
    here = build(tmp_path / "here", tmp_path / "corpus", shard_megabytes=1, validation=0)
    with serving(HUB) as url:
        made = tokenized(
            tmp_path, url, "hf://datasets/someone/texts", "--set", "data.shard_megabytes=1", "--validation", "0"
        )
    assert made.returncode == 0, made.stdout + made.stderr
    answer = json.loads(made.stdout)
    assert answer["id"] == here.id
    assert contents(answer["dataset"]) == contents(here.dataset)


def test_a_dataset_that_the_hub_has_not_is_one_line(tmp_path: Path) -> None:
    with serving(HUB) as url:
        made = tokenized(tmp_path, url, "hf://datasets/someone/else")
    assert made.returncode == 2
    assert json.loads(made.stdout)["error"]["where"] == "hf://datasets/someone/else"
    assert made.stderr.count("\n") == 1
