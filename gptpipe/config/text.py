"""A configuration as a person writes it, in a YAML file or as key=value, read by the type of each key.

YAML 1.1 makes a truth value of `off` and `no`: where a key is text, what is written is that text.
"""

from __future__ import annotations

import types
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from gptpipe.errors import UserError


class _GivenTwice(Exception):
    """A key that stands there twice."""


def _refuse_twice(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        line = key.start_mark.line + 1
        if (first := lines.setdefault(key.value, line)) != line:
            raise _GivenTwice(f"{key.value!r} is given twice, in lines {first} and {line}")


class _Values(yaml.SafeLoader):
    """Truth values and numbers as YAML 1.1 reads them. A key that is given twice is refused: YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_twice(node)
        self.flatten_mapping(node)
        # a key is the text that stands there, `on` too
        return {
            key.value if isinstance(key, yaml.ScalarNode) else str(key): self.construct_object(value, deep=True)
            for key, value in node.value
        }


class _Texts(yaml.SafeLoader):
    """Every scalar as the text that stands there."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        return super().construct_object(node, deep)


def read_yaml(file: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """The keys and values of a file, as they are written; `train.steps: 3` is read as `train: {steps: 3}`.

    Args:
        kind: the model whose fields say what is text.

    Raises:
        UserError: it is not there, or no mapping.
    """
    try:
        written = file.read_text("utf-8")
        values, texts = yaml.load(written, _Values), yaml.load(written, _Texts)
        if isinstance(values, dict):
            values, texts = _nested(values), _nested(texts)
    except OSError as error:
        raise UserError(error.strerror or str(error), where=str(file), hint="give an existing YAML file") from None
    except _GivenTwice as error:
        raise UserError(str(error), where=str(file), hint="keep one of the two") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not YAML: {error}", where=str(file), hint="correct the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError("not a mapping of keys to values", where=str(file), hint="write lines such as `preset: nano`")
    return _by_type(values, texts, kind)


def read_override(text: str, kind: type[BaseModel]) -> dict[str, Any]:
    """`key=value` as nested dictionaries.

    Args:
        kind: the model whose fields say what is text.

    Raises:
        UserError: it is not of that form.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{text!r} is not key=value", where="--set", hint="for example --set train.steps=200")
    try:
        value: Any = yaml.load(raw, _Values) if raw.strip() else raw
        written: Any = yaml.load(raw, _Texts) if raw.strip() else raw
    except _GivenTwice as error:
        raise UserError(str(error), where=f"--set {key}", hint="keep one of the two") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, say
        value = written = raw
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
        with suppress(ValueError):
            value = float(value)
    if isinstance(written, str) and raw.strip()[:1] not in ("'", '"'):
        written = raw
    dotted = key.strip()
    return _by_type(_nested({dotted: value}), _nested({dotted: written}), kind, raw)


def _nested(values: dict[Any, Any]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings."""
    mapping: dict[str, Any] = {}
    for key, value in values.items():
        inner = _nested(value) if isinstance(value, dict) else value
        *above, last = str(key).split(".")
        place = mapping
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise _GivenTwice(f"{part!r} is given as a value and as {key!r}")
        if isinstance(inner, dict) and isinstance(place.get(last), dict):
            inner = _merged(place[last], inner, str(key))
        elif last in place:
            raise _GivenTwice(f"{key!r} is given twice")
        place[last] = inner
    return mapping


def _merged(one: dict[str, Any], other: dict[str, Any], name: str) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merged(merged[key], value, f"{name}.{key}")
        elif key in merged:
            raise _GivenTwice(f"'{name}.{key}' is given twice")
        merged[key] = value
    return merged


def _by_type(values: dict[str, Any], texts: dict[str, Any], kind: type[BaseModel], raw: str = "") -> dict[str, Any]:
    """The values, with what stands there in place of those whose field is text."""
    return {key: _of_field(value, texts[key], kind.model_fields.get(key), raw) for key, value in values.items()}


def _of_field(value: Any, text: Any, info: Any, raw: str) -> Any:
    return value if info is None else _of(value, text, info.annotation, raw)


def _of(value: Any, text: Any, annotation: Any, raw: str) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _by_type(value, text, annotation, raw) if isinstance(value, dict) else value
    if get_origin(annotation) is list and isinstance(value, list):
        (inner,) = get_args(annotation)
        return [_of(one, other, inner, "") for one, other in zip(value, text, strict=True)]
    if _is_text(annotation):
        if value is None and type(None) in get_args(annotation):
            return None
        return raw if raw and isinstance(value, (dict, list)) else text
    return value


def _is_text(annotation: Any) -> bool:
    """Whether nothing but text can be meant, or its absence."""
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_text(one) for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is Literal:
        return all(isinstance(one, str) for one in get_args(annotation))
    return annotation is str
