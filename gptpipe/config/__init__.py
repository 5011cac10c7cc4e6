"""What a person can choose, as pydantic models, and where things are: options, YAML, Prefect's form, environment.

May import: errors, wording and the other single files below it.
"""

from gptpipe.config.fields import Section, field_roles
from gptpipe.config.load import load_config, load_sweep
from gptpipe.config.presets import PRESETS, preset_reference, preset_summary, preset_values
from gptpipe.config.sections import (
    Corpus,
    DataConfig,
    DriftConfig,
    EvaluateConfig,
    ModelConfig,
    PipelineConfig,
    PromoteConfig,
    SampleConfig,
    SweepConfig,
    SweepPipeline,
    TrainConfig,
)
from gptpipe.config.values import complaint, deep_merge, digest, flatten, parse

__all__ = [
    "PRESETS",
    "Corpus",
    "DataConfig",
    "DriftConfig",
    "EvaluateConfig",
    "ModelConfig",
    "PipelineConfig",
    "PromoteConfig",
    "SampleConfig",
    "Section",
    "SweepConfig",
    "SweepPipeline",
    "TrainConfig",
    "complaint",
    "deep_merge",
    "digest",
    "field_roles",
    "flatten",
    "load_config",
    "load_sweep",
    "parse",
    "preset_reference",
    "preset_summary",
    "preset_values",
]
