"""The configuration as a form: nothing is filled in but what a person fills in.

A form that shows every default would send every default, and they would stand over what the preset says. So fields are
empty, and their descriptions say what an empty one comes to.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from gptpipe.config.fields import Section
from gptpipe.config.presets import PRESETS
from gptpipe.config.sections import PipelineConfig
from gptpipe.config.values import deep_merge, flatten
from gptpipe.errors import UserError

# what most people choose stands at the top, under the last part of its key; `corpus` is a line of text for each
QUICK = ("data.corpus", "train.steps", "train.batch_size", "train.learning_rate", "train.nodes")
_LONG = 40  # characters of a value that a description does not repeat


def _in_order(schema: dict[str, Any]) -> None:
    """Prefect's server keeps schemas in an order of its own; its UI goes by these numbers."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class FormSection(Section):
    """A section whose empty fields stay as the preset, or the default, has them."""

    model_config = ConfigDict(json_schema_extra=_in_order)


def form_of(
    kind: type[Section],
    name: str,
    *,
    without: tuple[str, ...] = (),
    key: str = "",
    first: dict[str, Any] | None = None,
) -> type[FormSection]:
    """A section's fields with their bounds, all of them optional, sections folded, with what an empty one comes to.

    Args:
        name: of the model that is made.
        without: fields that make no sense there.
        key: of the section in the pipeline's configuration, with a dot at its end.
        first: fields that stand at the top, by name.
    """
    fields: dict[str, Any] = dict(first or {})
    for field, info in kind.model_fields.items():
        if field in without or field in fields:
            continue
        annotation: Any = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = form_of(annotation, f"{name}{field.title().replace('_', '')}", key=f"{key}{field}.")
        for bound in info.metadata:
            annotation = Annotated[annotation, bound]
        described = _described(info, f"{key}{field}")
        fields[field] = (annotation | None, Field(None, title=_title(field), description=described))
    made: type[FormSection] = create_model(
        name, __base__=FormSection, __doc__=kind.__doc__, __cls_kwargs__={"title": "Change"}, **fields
    )
    return made


def pipeline_form(name: str) -> type[FormSection]:
    """The form of the whole pipeline: the preset, what most people choose, and the rest behind its section."""
    fields = PipelineConfig.model_fields

    def shown(name: str, more: str = "") -> Any:
        """A field with its default: one that no preset fills in."""
        info = fields[name]
        return info.annotation, Field(info.default, title=_title(name), description=f"{info.description}{more}")

    def quick(key: str) -> Any:
        section, _, leaf = key.partition(".")
        info = fields[section].annotation.model_fields[leaf]  # type: ignore[union-attr]
        annotation: Any = info.annotation
        for bound in info.metadata:
            annotation = Annotated[annotation, bound]
        return annotation | None, Field(None, title=_title(leaf), description=_described(info, key))

    first = {
        "preset": shown("preset", f". {_presets()}"),
        "corpus": (list[str] | None, Field(None, title="Corpus", description=f"{CORPUS_LINE} Empty: stdlib:")),
        "steps": quick("train.steps"),
        "batch_size": quick("train.batch_size"),
        "learning_rate": quick("train.learning_rate"),
        "init": shown("init"),
        "nodes": quick("train.nodes"),
        "force": shown("force"),
    }
    return form_of(PipelineConfig, name, first=first)


CORPUS_LINE = "The texts, one each: a file, folder, glob, URL, s3:// address or stdlib:; NAME=URL gives it a name."


def values_of(form: FormSection) -> dict[str, Any]:
    """What a person filled in, as the configuration has it.

    Raises:
        UserError: a value at the top that its section has too.
    """
    values: dict[str, Any] = form.model_dump(mode="json", exclude_none=True)
    for key in QUICK:
        section, _, leaf = key.partition(".")
        if leaf not in values:
            continue
        if leaf in values.get(section, {}):
            raise UserError("given at the top and in its section", where=key, hint="leave one of them empty")
        value = values.pop(leaf)
        if leaf == "corpus":
            value = [corpus_of(line) for line in value]
        values = deep_merge(values, {section: {leaf: value}})
    return values


def corpus_of(line: str) -> dict[str, str]:
    """A corpus that is written as URL or NAME=URL."""
    name, equals, url = line.partition("=")
    if equals and name and "/" not in name and ":" not in name:
        return {"name": name, "url": url}
    return {"url": line}


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values as the form shows them: those of the top at the top."""
    shown = dict(values)
    for key in QUICK:
        section, _, leaf = key.partition(".")
        inner = dict(shown.get(section) or {})
        if leaf not in inner:
            continue
        value = inner.pop(leaf)
        if leaf == "corpus":
            lines = [(each.get("name"), each["url"]) for each in value]
            value = [f"{name}={url}" if name else url for name, url in lines]
        shown[leaf] = value
        shown.pop(section)
        if inner:
            shown[section] = inner
    return shown


def _title(field: str) -> str:
    return field.replace("_", " ").capitalize()


def _described(info: Any, key: str) -> str:
    usual = _usual(key, info)
    description = str(info.description)
    return f"{description}. Empty: {usual}" if usual else description


def _presets() -> str:
    """Each preset's architecture, shape and length in a few words."""
    words = []
    for name, config in _presets_by_name().items():
        model, train = config.model, config.train
        shape = f"{model.family} of {model.n_layer} layers x {model.n_embd}"
        words.append(f"{name}: {shape}, {train.steps:,} steps of {train.batch_size} x {model.context_length}")
    return "; ".join(words)


@cache
def _presets_by_name() -> dict[str, PipelineConfig]:
    return {name: PipelineConfig(preset=name) for name in PRESETS}


@cache
def _values() -> dict[str, dict[str, Any]]:
    return {name: flatten(config) for name, config in _presets_by_name().items()}


def _usual(key: str, info: Any) -> str:
    """What an empty field comes to: one value, or each preset's; empty where that would be long or nothing."""
    if not any(key in values for values in _values().values()):  # of a section that no preset knows
        own = info.get_default(call_default_factory=True)
        return "" if own in (None, "", [], {}) else _shown(own)
    by_value: dict[str, list[str]] = {}
    for name, values in _values().items():
        if key in values and values[key] not in (None, "", [], {}):
            by_value.setdefault(_shown(values[key]), []).append(name)
    if not by_value or any(len(value) > _LONG for value in by_value):
        return ""
    if len(by_value) == 1:
        return next(iter(by_value))
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
