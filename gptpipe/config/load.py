"""A configuration out of a preset, a YAML file and `key=value`, as the command line takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptpipe.config.presets import preset_values
from gptpipe.config.sections import PipelineConfig
from gptpipe.config.text import read_override, read_yaml
from gptpipe.config.values import deep_merge, parse


def load_config(
    *, preset: str | None = None, file: Path | None = None, overrides: list[str] | None = None, **given: Any
) -> PipelineConfig:
    """A configuration from a preset, a YAML file, `a.b=value` overrides and keywords, later ones first.

    Raises:
        UserError: a file, key or value that cannot be used; an unknown key gets the nearest name.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = read_yaml(file, PipelineConfig)
    if preset is not None:
        values["preset"] = preset
    for text in overrides or []:
        values = deep_merge(values, read_override(text, PipelineConfig))
    values = deep_merge(values, {key: value for key, value in given.items() if value is not None})
    if (name := values.get("preset")) is not None:
        preset_values(str(name))
    config: PipelineConfig = parse(PipelineConfig, values, where=str(file) if file else "")
    return config
