"""gptpipe: raw text in, an evaluated and registered GPT out, again every night."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
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
]

if TYPE_CHECKING:
    from gptpipe.config import EvaluateConfig, ModelConfig, SampleConfig
    from gptpipe.errors import UserError
    from gptpipe.evaluate import evaluate
    from gptpipe.generate import generate
    from gptpipe.model import GPT
    from gptpipe.pretrained import load

# imported at first use: the command line and the tokenizing workers start without torch
_HOMES = {
    "GPT": "gptpipe.model",
    "EvaluateConfig": "gptpipe.config",
    "ModelConfig": "gptpipe.config",
    "SampleConfig": "gptpipe.config",
    "UserError": "gptpipe.errors",
    "evaluate": "gptpipe.evaluate",
    "generate": "gptpipe.generate",
    "load": "gptpipe.pretrained",
}


class _Package(ModuleType):
    """Keeps `gptpipe.evaluate` and `gptpipe.generate` the functions, whoever imported the modules first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("evaluate", "generate") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'gptpipe' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
