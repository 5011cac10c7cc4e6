"""What is said at the end of a pipeline whose model could not be registered."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptpipe.cli.pipeline import summary
from gptpipe.config import DataConfig, PipelineConfig
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import open_dataset
from gptpipe.pipeline.result import PipelineResult
from tests.fixtures.tracked import result_of

WORDS = "not registered: MLflow was away; run the same again once it is back"


@pytest.mark.parametrize("waits", [True, False])
def test_a_model_that_waits_for_mlflow_is_told_of(waits: bool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four five\n" * 50)
    made = tokenize(DataConfig(corpus=[str(tmp_path / "a.txt")]), str(tmp_path / "out"))
    training, evaluation, samples = result_of(open_dataset(made.dataset), str(tmp_path), 2.0)
    result = PipelineResult(made, training, None, evaluation, samples, waits_for_mlflow=waits)
    assert (f"is        {WORDS}" in summary(PipelineConfig(), result).splitlines()) == waits
    assert result.sentence.endswith(WORDS) == waits


def test_what_a_preset_was_measured_against_is_told_where_nothing_was_changed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four five\n" * 50)
    made = tokenize(DataConfig(corpus=[str(tmp_path / "a.txt")]), str(tmp_path / "out"))
    training, evaluation, samples = result_of(open_dataset(made.dataset), str(tmp_path), 2.0)
    result = PipelineResult(made, training, None, evaluation, samples)

    def told(config: PipelineConfig) -> list[str]:
        return [line for line in summary(config, result).splitlines() if line.startswith("against ")]

    (line,) = told(PipelineConfig())
    assert line.startswith("against   preset nano, a GPT-2 of this size")
    assert told(PipelineConfig(train={"checkpoint_every": 7, "threads": 1})) != []  # decides nothing of the result
    assert told(PipelineConfig(train={"steps": 40})) == []
    assert told(PipelineConfig(data={"corpus": ["notes/"]})) == []
    assert told(PipelineConfig(preset="nano")) == []
