"""The table of all configuration keys, made from the models: `python -m gptpipe.config.reference` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptpipe.config.fields import Section, role_of
from gptpipe.config.presets import PRESETS, preset_summary, preset_values
from gptpipe.config.sections import SweepPipeline

_HEAD = """# Configuration

Settings of a run come from a preset, a YAML file (`--config`) and `--set key=value`; the later of these wins. In a file
`train.steps: 300` and `train: {steps: 300}` are the same, and what stands at a key that is text is text, `off` and `no`
too. An unknown key is refused, and the nearest name offered.

Keys marked * are operational: changing them continues the same run. Of the others, those of `data`, `model` and
`train` decide the result and are part of the dataset's or the training's id. The section `sweep` is read by
`gptpipe sweep` alone.

This page is made from the models: `python -m gptpipe.config.reference > gptpipe/config/README.md`.
"""


def page() -> str:
    """Markdown of presets and keys, a table for each section."""
    presets = "\n".join(f"| `{name}` | {preset_summary(name)} |" for name in PRESETS)
    parts = [_HEAD, f"## Presets\n\n| name | what it is for |\n| --- | --- |\n{presets}\n"]
    everywhere = set.intersection(*({key for key, _ in _leaves(preset_values(name))} for name in PRESETS))
    for title, kind, prefix in _sections(SweepPipeline, ""):
        rows = "\n".join(_row(prefix + name, info, everywhere) for name, info in _own_fields(kind))
        heading = f"`{prefix.rstrip('.')}`" if prefix else "The pipeline"
        about = f"{title}\n\n" if prefix else ""
        parts.append(f"## {heading}\n\n{about}| key | what it is | default |\n| --- | --- | --- |\n{rows}\n")
    return "\n".join(parts)


def _sections(kind: type[Section], prefix: str) -> Iterator[tuple[str, type[Section], str]]:
    yield (kind.__doc__ or "").strip(), kind, prefix
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _sections(info.annotation, f"{prefix}{name}.")


def _own_fields(kind: type[Section]) -> Iterator[tuple[str, Any]]:
    for name, info in kind.model_fields.items():
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, Section)):
            yield name, info


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _row(key: str, info: Any, in_every_preset: set[str]) -> str:
    default = "the preset's" if key in in_every_preset else _shown(info.get_default(call_default_factory=True))
    mark = " *" if role_of(info) == "operational" else ""
    return f"| `{key}`{mark} | {(info.description or '').replace('|', chr(92) + '|')} | {default} |"


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, list) and value and isinstance(value[0], Section):
        return ", ".join(f"`{each.url}`" for each in value)
    if isinstance(value, list) and len(value) > 2:
        return f"{len(value)} texts"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


if __name__ == "__main__":
    print(page(), end="")
