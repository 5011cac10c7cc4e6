"""gptpipe: raw text in, an evaluated and registered GPT out, again every night.

A program that uses it as a library calls `prepare_environment` first, so that `.env` and `GPTPIPE_*` variables count.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gptpipe.version import __version__

if TYPE_CHECKING:
    from gptpipe.config import EvaluateConfig, ModelConfig, SampleConfig
    from gptpipe.config.settings import prepare_environment
    from gptpipe.errors import UserError
    from gptpipe.evaluation.evaluate import evaluate
    from gptpipe.generation.generate import generate
    from gptpipe.model.gpt import GPT
    from gptpipe.weights.find import load

__all__ = [
    "GPT",
    "EvaluateConfig",
    "ModelConfig",
    "SampleConfig",
    "UserError",
    "__version__",
    "evaluate",
    "generate",
    "load",
    "prepare_environment",
]

# imported at first use: the command line and the tokenizing workers start without torch
_HOMES = {
    "GPT": "gptpipe.model.gpt",
    "EvaluateConfig": "gptpipe.config",
    "ModelConfig": "gptpipe.config",
    "SampleConfig": "gptpipe.config",
    "UserError": "gptpipe.errors",
    "evaluate": "gptpipe.evaluation.evaluate",
    "generate": "gptpipe.generation.generate",
    "load": "gptpipe.weights.find",
    "prepare_environment": "gptpipe.config.settings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gptpipe' has no attribute {name!r}")
