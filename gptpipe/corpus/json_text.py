"""The text of a JSON object: by the name of its field, which may be a nested one, and what a .json file holds."""

from __future__ import annotations

import json
from typing import Any

from gptpipe.errors import UserError

LOOKED_AT = 1 << 16  # bytes that say what a .json file is


def text_at(value: Any, field: str) -> Any:
    """What an object has at a field, `meta.text` being `text` in `meta`; the texts of a list are joined by a line.

    None where it has none.
    """
    if isinstance(value, dict) and field in value:
        return value[field]
    first, dot, rest = field.partition(".")
    inner = value.get(first) if isinstance(value, dict) else None
    if not dot or inner is None:
        return None
    if not isinstance(inner, list):
        return text_at(inner, rest)
    texts = [text_at(each, rest) for each in inner]
    return "\n".join(texts) if texts and all(isinstance(text, str) for text in texts) else None


def fields_with_text(value: dict[str, Any], above: str = "") -> list[str]:
    """The names under which an object has text, those of the objects in it too."""
    names: list[str] = []
    for key, inner in value.items():
        if isinstance(inner, str):
            names.append(above + key)
        elif isinstance(inner, dict):
            names += fields_with_text(inner, f"{above}{key}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            names += fields_with_text(inner[0], f"{above}{key}.")
    return names


def missing_text(row: Any, field: str) -> tuple[str, str]:
    """What is wrong with an object that has no text at a field, and what to do."""
    if not isinstance(row, dict):
        return "not an object", "give an object a line, with its text in a field"
    problem = f"field {field!r} is missing" if text_at(row, field) is None else f"field {field!r} is not text"
    if not row:
        return problem, "it has no fields; --set data.on_error=skip leaves such lines out"
    names = fields_with_text(row)
    if field == "text" and "messages.content" in names:
        return problem, "it holds chat messages: --set data.text_field=messages.content joins what they say"
    if not names:
        names = list(row)
    have = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    return problem, f"it has {have}; choose one with --set data.text_field=NAME, or data.on_error=skip"


def kind_of_json(beginning: bytes, field: str, *, where: str, needs_field: bool) -> str:
    """`jsonl` where a file that begins so holds an object a line; empty where it does not.

    Args:
        needs_field: whether the first object must have text at `field`.

    Raises:
        UserError: it is an array of such objects.
    """
    text = beginning.decode("utf-8", "ignore").removeprefix("\ufeff").lstrip()
    if text.startswith("["):
        first = _first_object(text[1:].lstrip())
        if first is not None and (not needs_field or isinstance(text_at(first, field), str)):
            raise UserError(
                "one array of objects, where one object per line is read",
                where=where,
                hint="make lines of it, for example with `jq -c '.[]' FILE > FILE.jsonl`",
            )
        return ""
    line, newline, _ = text.partition("\n")
    whole = newline or len(beginning) < LOOKED_AT
    first = _first_object(line) if whole else None
    if first is None and not whole and text.startswith("{"):  # a first line longer than what was looked at
        return "" if needs_field else "jsonl"
    if first is None or (needs_field and not isinstance(text_at(first, field), str)):
        return ""
    return "jsonl"


def _first_object(text: str) -> dict[str, Any] | None:
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
