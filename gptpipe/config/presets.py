"""The presets: YAML files in the package."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from importlib import resources
from typing import Any

import yaml

from gptpipe.config.values import nearest
from gptpipe.errors import UserError

PRESETS = ("nano-modern", "nano", "modern-124m", "gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1558m", "book-124m")
DEFAULT_PRESET = "nano-modern"


def preset_values(name: str) -> dict[str, Any]:
    """The values of a preset, as nested dictionaries.

    Raises:
        UserError: there is no such preset; the nearest name is offered.
    """
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}", where="preset", hint=nearest(name, PRESETS))
    return deepcopy(_read(name))


def preset_summary(name: str) -> str:
    """The first comment line of a preset's file: what it is for."""
    return _text(name).splitlines()[0].lstrip("# ")


def preset_reference(name: str) -> str:
    """What a preset was measured against, and how far apart they came; empty where its file does not say."""
    _, begins, said = _text(name).partition("\n# Against ")
    return said.partition("\n")[0] if begins else ""


def _text(name: str) -> str:
    return resources.files("gptpipe").joinpath("presets", f"{name}.yaml").read_text("utf-8")


@cache  # a configuration is made many times, and YAML is slow to read
def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_text(name))
    return values
