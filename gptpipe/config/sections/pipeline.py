"""The whole pipeline: every section, filled in from a preset."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gptpipe.config.fields import Section, operational, result, without_secret
from gptpipe.config.presets import DEFAULT_PRESET, PRESETS, preset_values
from gptpipe.config.sections.data import DataConfig
from gptpipe.config.sections.drift import DriftConfig
from gptpipe.config.sections.evaluate import EvaluateConfig
from gptpipe.config.sections.model import ModelConfig
from gptpipe.config.sections.promote import PromoteConfig
from gptpipe.config.sections.sample import SampleConfig
from gptpipe.config.sections.train import TrainConfig
from gptpipe.config.values import deep_merge


class PipelineConfig(Section):
    """The whole pipeline. `preset` fills in `model`, `train`, … before anything else given here."""

    preset: Literal[PRESETS] = result(  # type: ignore[valid-type]
        DEFAULT_PRESET, "Model and training settings to start from"
    )
    init: str = result(
        "scratch",
        "Weights to start from: scratch, champion, or any WEIGHTS (folder, file, hf:NAME, models:/…), whose shape the "
        "model then has",
    )
    init_context_length: int = result(
        0,
        "Context of a model that starts from weights: 0 is theirs, less cuts their position embeddings, more repeats "
        "them",
        "tokens",
        ge=0,
        le=1 << 20,
    )
    data: DataConfig = Field(default_factory=DataConfig, description="From text to token shards")
    drift: DriftConfig = Field(default_factory=DriftConfig, description="How far new text may differ")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The shape of the model")
    train: TrainConfig = Field(default_factory=TrainConfig, description="The training loop")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="What the model is scored on")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="What is generated to look at")
    promote: PromoteConfig = Field(default_factory=PromoteConfig, description="What happens to the finished model")
    export: str | None = operational(
        None, "Folder or URL where the finished model is written as transformers reads it; an earlier one is replaced"
    )
    force: bool = operational(False, "Train again as a new attempt even if this training is finished")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = value.get("preset", DEFAULT_PRESET)
        if name not in PRESETS:
            return value
        preset, given = preset_values(name), value.get("train")
        if isinstance(given, dict) and isinstance(steps := given.get("steps"), int):
            usual = preset["train"]  # fewer steps have as large a share of warm-up
            usual["warmup_steps"] = usual["warmup_steps"] * max(0, min(steps, usual["steps"])) // usual["steps"]
        return deep_merge(preset, value)

    @field_validator("init")
    @classmethod
    def _init_not_empty(cls, value: str) -> str:
        return without_secret(value.strip() or "scratch")
