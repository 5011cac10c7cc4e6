"""Fields of a configuration: what each one is, and whether it decides what comes out."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from gptpipe.wording import holds_secret


def _field(role: str, default: Any, description: str, unit: str | None, **bounds: Any) -> Any:
    extra: dict[str, Any] = {"role": role, **({"unit": unit} if unit else {})}
    text = f"{description} [{unit}]" if unit else description
    if type(default) is int and not bounds.keys() & {"le", "lt"}:
        bounds["le"] = 2**53  # the largest whole number that every reader of JSON has
    return Field(default, description=text, json_schema_extra=extra, **bounds)


def result(default: Any, description: str, unit: str | None = None, **bounds: Any) -> Any:
    """A field that decides what comes out; its value is hashed into the run's id unless it is the default."""
    return _field("result", default, description, unit, **bounds)


def operational(default: Any, description: str, unit: str | None = None, **bounds: Any) -> Any:
    """A field that decides where, how fast or how often, but not what comes out."""
    return _field("operational", default, description, unit, **bounds)


def without_secret(url: str) -> str:
    """The address, which stands in runs and reports.

    Raises:
        ValueError: it holds a password or a signature.
    """
    if holds_secret(url):
        raise ValueError("the address holds a password or a signature: download the file, and give its path")
    return url


class Section(BaseModel):
    """A group of fields. Unknown keys are refused."""

    # what is refused may hold a password
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True)

    def result_fields(self) -> dict[str, Any]:
        """The fields that decide the result and differ from their default, by dotted name."""
        fields: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                fields |= {f"{name}.{key}": inner for key, inner in value.result_fields().items()}
            elif role_of(info) == "result" and value != info.get_default(call_default_factory=True):
                fields[name] = self.model_dump(mode="json", include={name})[name]
        return fields


def role_of(info: Any) -> str:
    extra = info.json_schema_extra
    return str(extra.get("role", "result")) if isinstance(extra, dict) else "result"


def unit_of(info: Any) -> str:
    """A field's unit; empty if it has none."""
    extra = info.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def known_keys(kind: type[Section], prefix: str = "") -> list[str]:
    """All dotted keys of a configuration model."""
    keys: list[str] = []
    for name, info in kind.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            keys += known_keys(annotation, f"{prefix}{name}.")
            continue
        keys.append(prefix + name)
        for inner in get_args(annotation):  # a list of sections
            if isinstance(inner, type) and issubclass(inner, Section):
                keys += known_keys(inner, f"{prefix}{name}.0.")
    return keys


def field_roles(kind: type[Section], prefix: str = "") -> dict[str, str]:
    """The role of every field, result or operational, by dotted key."""
    roles: dict[str, str] = {}
    for name, info in kind.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            roles |= field_roles(annotation, f"{prefix}{name}.")
        else:
            roles[prefix + name] = role_of(info)
    return roles
