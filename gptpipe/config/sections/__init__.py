"""Everything a person can choose, as pydantic models: the CLI's options, the YAML files and Prefect's form.

Every field says what it is, in which unit and within which bounds, and has its default here alone. Every field is also
marked as *result* (it decides what comes out, so it is part of a run's id) or *operational* (where, how fast, how often
it is saved: changing it continues the same run).
"""

from gptpipe.config.sections.data import Corpus, DataConfig
from gptpipe.config.sections.drift import DriftConfig
from gptpipe.config.sections.evaluate import EvaluateConfig
from gptpipe.config.sections.model import ModelConfig
from gptpipe.config.sections.pipeline import PipelineConfig
from gptpipe.config.sections.promote import PromoteConfig
from gptpipe.config.sections.sample import SampleConfig
from gptpipe.config.sections.sweep import SweepConfig, SweepPipeline
from gptpipe.config.sections.train import TrainConfig

__all__ = [
    "Corpus",
    "DataConfig",
    "DriftConfig",
    "EvaluateConfig",
    "ModelConfig",
    "PipelineConfig",
    "PromoteConfig",
    "SampleConfig",
    "SweepConfig",
    "SweepPipeline",
    "TrainConfig",
]
