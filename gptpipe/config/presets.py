"""The presets: YAML files in the package."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from gptpipe.config.values import nearest
from gptpipe.errors import UserError

PRESETS = ("nano", "gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1558m", "book-124m")


def preset_values(name: str) -> dict[str, Any]:
    """The values of a preset, as nested dictionaries.

    Raises:
        UserError: there is no such preset; the nearest name is offered.
    """
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}", where="preset", hint=nearest(name, PRESETS))
    text = resources.files("gptpipe").joinpath("presets", f"{name}.yaml").read_text("utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def preset_summary(name: str) -> str:
    """The first comment line of a preset's file: what it is for."""
    text = resources.files("gptpipe").joinpath("presets", f"{name}.yaml").read_text("utf-8")
    return text.splitlines()[0].lstrip("# ")
