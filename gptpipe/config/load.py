"""A configuration out of a preset, a YAML file and `key=value`, as the command line takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptpipe.config.presets import preset_values
from gptpipe.config.sections import PipelineConfig, SweepConfig, SweepPipeline
from gptpipe.config.text import read_override, read_yaml
from gptpipe.config.values import deep_merge, parse


def load_config(
    *, preset: str | None = None, file: Path | None = None, overrides: list[str] | None = None, **given: Any
) -> PipelineConfig:
    """A configuration from a preset, a YAML file, `a.b=value` overrides and keywords, later ones first.

    Raises:
        UserError: a file, key or value that cannot be used; an unknown key gets the nearest name.
    """
    config: PipelineConfig = _loaded(PipelineConfig, preset, file, overrides, given)
    return config


def load_sweep(
    *, preset: str | None = None, file: Path | None = None, overrides: list[str] | None = None, **given: Any
) -> tuple[PipelineConfig, SweepConfig]:
    """What the trainings of a sweep have in common, and the section `sweep`, from the same sources.

    Raises:
        UserError: a file, key or value that cannot be used; an unknown key gets the nearest name.
    """
    whole: SweepPipeline = _loaded(SweepPipeline, preset, file, overrides, given)
    return whole.parts()


def _loaded(
    kind: type[PipelineConfig],
    preset: str | None,
    file: Path | None,
    overrides: list[str] | None,
    given: dict[str, Any],
) -> Any:
    values: dict[str, Any] = {}
    if file is not None:
        values = read_yaml(file, kind)
    if preset is not None:
        values["preset"] = preset
    for text in overrides or []:
        values = deep_merge(values, read_override(text, kind))
    values = deep_merge(values, {key: value for key, value in given.items() if value is not None})
    if (name := values.get("preset")) is not None:
        preset_values(str(name))
    return parse(kind, values, where=str(file) if file else "")
