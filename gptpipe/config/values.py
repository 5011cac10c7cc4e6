"""Values of a configuration: checked, merged, flattened, and their digest."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from gptpipe.config.fields import Section, known_keys
from gptpipe.errors import UserError

_SHORT = reprlib.Repr()  # a few lines of YAML may stand for more values than fit into memory
_SHORT.maxstring = _SHORT.maxother = 300
_SHORT.maxlist = _SHORT.maxdict = 10
_SHORT.maxlevel = 3


def parse(kind: type[Section], values: dict[str, Any], *, where: str = "") -> Any:
    """`values` as a `kind`, with pydantic's complaints turned into one line for the user."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        place = f"{where}: {dotted}" if where and dotted else dotted or where
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown key{_more(error)}", where=place, hint=nearest(dotted, known_keys(kind))) from None
        # ours say what to do
        hint = "" if first["type"] == "value_error" else "gptpipe/config/README.md has them"
        raise UserError(complaint(error), where=place, hint=hint) from None


def complaint(error: ValidationError) -> str:
    """What pydantic says first, in one line, and of how many more."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("value_error", "missing") else f", got {_SHORT.repr(first['input'])}"
    return f"{message[:1].lower()}{message[1:]}{got}{_more(error)}"


def _more(error: ValidationError) -> str:
    return f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""


def deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, dictionaries merged key by key. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, BaseModel):
            value = value.model_dump()
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def flatten(config: BaseModel) -> dict[str, Any]:
    """All values by dotted name, lists and nested models included: MLflow's parameters."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    visit("", config.model_dump(mode="json"))
    return flat


def digest(value: Any) -> str:
    """32 hexadecimal digits of SHA-256 over canonical JSON: the same for the same content everywhere."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def nearest(name: str, known: Sequence[str]) -> str:
    """ "did you mean …?": the same leaf in another section, a like one in this section, or the likest of all."""
    section, _, leaf = name.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for key in known:
        leaves.setdefault(key.rpartition(".")[2], []).append(key)
    here = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    sections = sorted({key.rpartition(".")[0] for key in known if "." in key})
    if 1 <= len(leaves.get(leaf, [])) <= 3:
        return f"did you mean {' or '.join(leaves[leaf])}?"
    if whole := _unabbreviated(leaf, here):
        return f"did you mean {section}.{whole}?" if section else f"did you mean {whole}?"
    if near := difflib.get_close_matches(leaf, here if section else [*here, *sections], n=1):
        return f"did you mean {section}.{near[0]}?" if section else f"did you mean {near[0]}?"
    if (whole := _unabbreviated(leaf, list(leaves))) and len(leaves[whole]) <= 3:
        return f"did you mean {' or '.join(leaves[whole])}?"
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean {near[0]}?"
    if near := difflib.get_close_matches(leaf, list(leaves), n=1):
        return f"did you mean {leaves[near[0]][0]}?"
    most = 20
    if len(known) > most:
        return f"known sections: {', '.join(sections)}; gptpipe/config/README.md has them"
    return f"known: {', '.join(known)}"


def _unabbreviated(short: str, names: Sequence[str]) -> str:
    """The name of which this is short: the initials of its words, or its first letter and more of it in order."""
    if len(short) < 2:
        return ""
    for name in names:
        if short == "".join(word[:1] for word in name.split("_")):
            return name
    letters = re.compile(".*".join(map(re.escape, short)))
    return min(filter(letters.match, names), key=len, default="")
