"""A configuration out of a preset, a YAML file and `key=value`, as the command line takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gptpipe.config.origins import Origins
from gptpipe.config.presets import preset_values
from gptpipe.config.sections import PipelineConfig, SweepConfig, SweepPipeline
from gptpipe.config.text import read_override, read_yaml
from gptpipe.config.values import deep_merge, parse
from gptpipe.errors import UserError

_NONE: Mapping[str, str] = MappingProxyType({})


def load_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    overrides: list[str] | None = None,
    options: Mapping[str, str] = _NONE,
    **given: Any,
) -> PipelineConfig:
    """A configuration from a preset, a YAML file, `a.b=value` overrides and keywords, later ones first.

    Args:
        options: those of the command line that the keywords are from, as a person wrote them, by dotted key.

    Raises:
        UserError: a file, key or value that cannot be used; an unknown key gets the nearest name.
    """
    config: PipelineConfig = _loaded(PipelineConfig, preset, file, overrides, options, given)
    return config


def load_sweep(
    *,
    preset: str | None = None,
    file: Path | None = None,
    overrides: list[str] | None = None,
    options: Mapping[str, str] = _NONE,
    **given: Any,
) -> tuple[PipelineConfig, SweepConfig]:
    """What the trainings of a sweep have in common, and the section `sweep`, from the same sources.

    Args:
        options: those of the command line that the keywords are from, as a person wrote them, by dotted key.

    Raises:
        UserError: a file, key or value that cannot be used; an unknown key gets the nearest name.
    """
    whole: SweepPipeline = _loaded(SweepPipeline, preset, file, overrides, options, given)
    return whole.parts()


def _loaded(
    kind: type[PipelineConfig],
    preset: str | None,
    file: Path | None,
    overrides: list[str] | None,
    options: Mapping[str, str],
    given: dict[str, Any],
) -> Any:
    values: dict[str, Any] = {}
    origins = Origins(str(file) if file else "")
    if file is not None:
        values = read_yaml(file, kind)
        origins.add(values)
    if preset is not None:
        values["preset"] = preset
        origins.add({"preset": preset}, f"--preset {preset}")
    for text in overrides or []:
        inner = read_override(text, kind)
        values = deep_merge(values, inner)
        origins.add(inner, f"--set {text}")
    values = deep_merge(values, {key: value for key, value in given.items() if value is not None})
    for key, text in options.items():
        origins.add({key: text}, text)
    try:
        if (name := values.get("preset")) is not None:
            preset_values(str(name))
        return parse(kind, values)
    except UserError as error:
        raise origins.refusal(error) from None
