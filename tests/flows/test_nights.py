"""Nights that go on from the champion: trained afresh, skipped, promoted, stopped, kept; each says why."""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gptpipe.config.settings import settings
from gptpipe.tracking.client import Tracking
from tests.flows.test_retrain import GPTPIPE, TINY, ask

pytestmark = pytest.mark.slow
MORE = ["train.steps=40", "train.batch_size=16", "train.learning_rate=3e-3", "train.checkpoint_every=0"]
NIGHT = [*TINY, *MORE, "init=champion", "promote.max_degenerate=1", "promote.max_copied=0"]
WORDS = ["value", "name", "index", "result", "total", "count", "other", "first", "last", "item"]


def code(seed: int) -> str:
    draw = random.Random(seed)
    lines = [f"def {draw.choice(WORDS)}_{seed}({draw.choice(WORDS)}):"]
    lines += [f"    {draw.choice(WORDS)} = {draw.choice(WORDS)} + {draw.randint(0, 9)}" for _ in range(20)]
    return "\n".join(lines) + "\n"


def add(corpus: Path, numbers: range) -> None:
    for number in numbers:
        (corpus / f"{number:03}.py").write_text(code(number))


def command(corpus: Path, *more: str) -> list[str]:
    """A night on this corpus, with further settings."""
    settings = [part for text in [*NIGHT, *more] for part in ("--set", text)]
    return [GPTPIPE, "run", "--json", "--corpus", f"code={corpus}", *settings]


def night(corpus: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(corpus, *more), capture_output=True, text=True, cwd=corpus, timeout=900, check=False)


def trainings() -> int:
    tracking = Tracking.of(settings())
    client = tracking.connect()
    return len(client.search_runs([tracking.experiment_id(client)]))


def champion() -> str:
    return str(Tracking.of(settings()).connect().get_model_version_by_alias("gptpipe", "champion").version)


def test_five_nights(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    corpus = tmp_path / "corpus"
    corpus.mkdir()

    def pages(key: str) -> list[str]:
        return [each["data"] for each in ask(prefect_api, "/artifacts/filter") if each["key"] == key]

    add(corpus, range(150))
    first = night(corpus)
    assert first.returncode == 0, first.stderr
    assert "gptpipe has no champion yet: from scratch" in first.stderr
    assert (champion(), trainings()) == ("1", 1)

    again = night(corpus)
    assert again.returncode == 0, again.stderr
    answer: dict[str, Any] = json.loads(again.stdout)
    assert answer["skipped"].startswith("nothing is new since dataset ")
    assert (champion(), trainings()) == ("1", 1)
    states = {run["state_name"] for run in ask(prefect_api, "/flow_runs/filter")}
    assert "Skipped" in states

    add(corpus, range(150, 220))
    grown = night(corpus)
    assert grown.returncode == 0, grown.stderr
    model = json.loads(grown.stdout)["model"]
    assert (model["champion"], champion(), trainings()) == (True, "2", 2)
    assert "documents of" in grown.stderr
    assert "new since dataset" in grown.stderr
    assert any(re.search(r"\| yes \| [^|]* \| new text: not surely worse", page) for page in pages("retrain"))
    assert any(re.search(r"\| yes \| [^|]* \| old text: not surely worse", page) for page in pages("retrain"))
    assert any("| divergence of token frequencies | 0 |" in page for page in pages("news"))

    for number in range(20):
        (corpus / f"new-{number}.py").write_text(
            "все люди рождаются свободными и равными в достоинстве " * (9 + number)
        )
    stopped = night(corpus)
    assert stopped.returncode == 2
    line = stopped.stderr.strip().splitlines()[-1]
    assert "the text is not what the champion was trained on: " in line
    assert "Cyrillic" in line
    assert "Traceback" not in stopped.stderr
    assert (champion(), trainings()) == ("2", 2)
    assert any("| **no** |" in page for page in pages("news"))

    for file in corpus.glob("new-*.py"):
        file.unlink()
    add(corpus, range(220, 240))
    kept = night(corpus, "train.learning_rate=1e-9")
    assert kept.returncode == 0, kept.stderr
    answer = json.loads(kept.stdout)
    assert "not surely better" in answer["model"]["decision"]
    assert (champion(), trainings()) == ("2", 3)

    # scored on what it is trained on: nothing is trained
    leaks = [f"evaluate.data={answer['dataset']['dataset']}", "evaluate.split=train"]
    refused = night(corpus, *leaks, "train.learning_rate=2e-9")
    assert refused.returncode == 2
    assert "100.00% of the evaluation's text stands in the training text word for word" in refused.stderr
    assert "evaluate.max_overlap" in refused.stderr.strip().splitlines()[-1]
    assert (champion(), trainings()) == ("2", 3)


def test_the_champions_dataset_is_gone(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be told of what is new: all text is drawn alike, and it is said."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    add(corpus, range(60))
    first = night(corpus)
    assert first.returncode == 0, first.stderr
    dataset = Path(json.loads(first.stdout)["dataset"]["dataset"])
    add(corpus, range(60, 70))
    for file in dataset.rglob("*.parquet"):
        file.unlink()
    (dataset / "manifest.json").unlink()
    second = night(corpus)
    assert second.returncode == 0, second.stderr
    assert "what is new since the champion's dataset cannot be told: " in second.stderr
    assert json.loads(second.stdout)["model"]["version"] == "2"
