"""A section of the configuration as a form: nothing is filled in but what a person fills in.

A form that shows every default would send every default, and they would stand over what the preset says.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from gptpipe.config import Section


def _in_order(schema: dict[str, Any]) -> None:
    """Prefect's server keeps schemas in an order of its own; its UI goes by these numbers."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class FormSection(Section):
    """A section whose empty fields stay as the preset, or the default, has them."""

    model_config = ConfigDict(json_schema_extra=_in_order)


def form_of(kind: type[Section], name: str, shown: tuple[str, ...] = ()) -> type[FormSection]:
    """The same fields with the same bounds and descriptions, all of them optional, sections folded.

    Args:
        name: of the model that is made.
        shown: fields that are shown with their defaults: those that no preset fills in.
    """
    fields: dict[str, Any] = {}
    for field, info in kind.model_fields.items():
        annotation: Any = info.annotation
        if field in shown:
            fields[field] = (annotation, Field(info.default, description=info.description))
            continue
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = form_of(annotation, f"{name}{field.title().replace('_', '')}")
        for bound in info.metadata:
            annotation = Annotated[annotation, bound]
        fields[field] = (annotation | None, Field(None, description=info.description))
    made: type[FormSection] = create_model(
        name, __base__=FormSection, __doc__=kind.__doc__, __cls_kwargs__={"title": "Change"}, **fields
    )
    return made
