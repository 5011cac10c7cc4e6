"""What a training came to, as a person reads it, and as Markdown that no name can break."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptpipe.config import DataConfig, PipelineConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.generation.generate import Sample, Samples
from gptpipe.launch.training import TrainResult
from gptpipe.tracking.promote import Decision
from gptpipe.tracking.summary import training_summary
from tests.fixtures.tracked import result_of

LINES = [
    {"step": 5, "tokens": 500, "train/loss": 6.0, "train/memory_mb": 950.0},
    {"step": 10, "tokens": 1000, "train/loss": 4.25, "train/memory_mb": 900.0, "train/active_seconds": 75.0},
    {
        "step": 10,
        "tokens": 1000,
        "train/device_hours": 0.0417,
        "train/energy_wh": 12.4,
        "train/flops": 1.25e12,
        "validation/loss": 4.5,
    },
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "a|b.txt").write_text("Every effort moves you\n" * 100)
    config = DataConfig(corpus=[{"name": "letters", "url": str(tmp_path / "a|b.txt")}], validation=0.0)
    return open_dataset(tokenize(config, str(tmp_path / "out")).dataset)


def summary(dataset: Dataset, decision: Decision | None, text: str = "def f():") -> dict[str, str]:
    result = TrainResult("id", "t", "t/step-1", "t/`step`|1", dataset.url, 10, 1000, 4.25, 4.5, 333.0, False)
    _, evaluation, _ = result_of(dataset, str(Path(dataset.url).parent), 4.4)
    samples = Samples([Sample("", text, list(range(20)))], 0.75, "w", 10)
    config = PipelineConfig(train={"learning_rate": 0.004})
    whole = training_summary(config, dataset, result, evaluation, samples, LINES, decision, parameters=1234567)
    rows = [
        line.strip("| ").split(" | ", 1) for line in whole.splitlines() if line.startswith("| ") and "---" not in line
    ]
    return {"whole": whole, **{row[0]: row[1] for row in rows if len(row) == 2}}


def test_the_table_answers_how_good_against_what_on_what_and_at_what_cost(dataset: Dataset) -> None:
    found = summary(dataset, Decision(False, "not surely better: 0.01 worse"))
    assert found["loss"] == "4.400 nats per token (95 % interval 4.200 to 4.600), perplexity 81.5, 1.000 bits per byte"
    assert found["against the champion"] == "not surely better: 0.01 worse"
    assert found["scored on"].startswith("validation split of dataset d: 100 tokens in 12 documents, w")
    assert found["while training"].startswith(
        "train/loss 4.250, the mean since the logged step before; validation/loss"
    )
    assert "8,192 tokens of the validation split" in found["while training"]
    assert found["changed"] == "lr=0.004"
    assert found["cost"] == (
        "10 steps over 1,000 tokens, 1 min 15 s of training, 0.0417 device hours, 12.4 Wh, 1.25e+12 FLOPs, "
        "333 tokens/s, 0.95 GB per rank at most"
    )
    assert found["model"].startswith("1,234,567 parameters")
    assert found["samples"] == "0% degenerate (blank, or the same words over and over), 75% of the lines are Python"
    assert "against what it started from" not in found


def test_no_name_or_text_breaks_the_table(dataset: Dataset) -> None:
    found = summary(dataset, None, text="```\n<b>|\n")
    assert found["against the champion"] == "no model is registered"
    assert found["checkpoint"] == r"t/\`step\`\|1"
    assert "    ```\n    <b>|" in found["whole"]
