"""What runs are called."""

from __future__ import annotations

import pytest

from gptpipe.config import PRESETS, PipelineConfig, load_config
from gptpipe.config.names import changes, pipeline_name, training_name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [None, 40, 3, 100_000])
def test_nothing_that_follows_from_another_choice_counts_as_chosen(preset: str, steps: int | None) -> None:
    config = PipelineConfig(preset=preset, train={"steps": steps} if steps else {})
    assert changes(config) == ({"train.steps": steps} if steps else {})


NAMES = {
    (): "nano · stdlib",
    ("train.learning_rate=0.004",): "nano · lr=0.004 · stdlib",
    ("train.learning_rate=4e-3", "train.steps=40"): "nano · lr=0.004 steps=40 · stdlib",
    ("train.validate_every=7", "train.nproc=2", "promote.alias=best"): "nano · stdlib",
    ("preset=gpt2-124m", "init=hf:openai/gpt2"): "gpt2-124m · from gpt2 · stdlib",
    ("init=/a/b/step-00000040", "model.n_layer=7"): "nano · from step-00000040 · stdlib",
    ("data.corpus=[s3://bucket/notes/, /x/a.txt]",): "nano · notes+a.txt",
    ("data.corpus=[{url: a, name: one}, b, c, d, e]",): "nano · one+b+c+2",
    ("train.warmup_steps=9",): "nano · warmup_steps=9 · stdlib",
    ("train.mixture={a: 1, b: 2}",): "nano · mixture.a=1 mixture.b=2 · stdlib",
    (
        "model.n_layer=1",
        "model.n_head=1",
        "model.n_embd=8",
        "model.dropout=0.1",
        "train.steps=5",
        "train.seed=3",
    ): "nano · steps=5 n_layer=1 n_head=1 n_embd=8 +2 · stdlib",
}


@pytest.mark.parametrize("overrides", NAMES)
def test_a_retraining_is_called_by_preset_changes_and_texts(overrides: tuple[str, ...]) -> None:
    preset = [] if any(override.startswith("preset=") for override in overrides) else ["preset=nano"]
    assert pipeline_name(load_config(overrides=[*preset, *overrides])) == NAMES[overrides]


def test_a_training_is_called_by_what_differs_first_and_never_like_another() -> None:
    config = load_config(preset="nano", overrides=["train.learning_rate=0.004"])
    assert training_name(config, "stdlib", "3fa2c1aa") == "lr=0.004 · stdlib · nano · 3fa2c1"
    assert training_name(PipelineConfig(), "stdlib", "77") == "as the preset · stdlib · nano-modern · 77"
