"""What a sweep searches: keys of the configuration, with the values that each may have."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from gptpipe.config import PipelineConfig, Section, complaint, deep_merge, field_roles, parse, preset_values
from gptpipe.config.text import read_override
from gptpipe.config.values import nearest
from gptpipe.dataset.order import epoch_keys, permute
from gptpipe.errors import UserError

SECTIONS = ("model", "train")  # whose fields change what a training comes to on the same text
_LATER = ("evaluate", "sample", "promote", "export")  # what comes after a training
_MIXTURE = "train.mixture."
_RANGE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(:(?P<scale>log|linear))?")
_LOG_FROM = 10  # a range that spans such a factor is searched on a log scale
_EXAMPLE = "for example train.learning_rate=1e-4..1e-2 or model.n_embd=64,128"
_SEARCHED = "search keys of model and train; those without * in gptpipe/config/README.md"
_REFERENCE = "gptpipe/config/README.md has the keys; those without * can be searched"


@dataclass(frozen=True)
class Dimension:
    """One key, with a list of values or a range.

    Attributes:
        key: with dots. text: its values as a person wrote them.
        values: the list; empty for a range. low, high: ends of the range, both of them in it.
        log: whether the range is drawn from on a log scale. whole: whether it holds whole numbers.
    """

    key: str
    text: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What is searched, however it was written: the same for the same search."""
        if self.values:
            return {"key": self.key, "values": list(self.values)}
        return {"key": self.key, "low": self.low, "high": self.high, "log": self.log, "whole": self.whole}


def read_space(lines: Sequence[str], base: PipelineConfig) -> tuple[Dimension, ...]:
    """The dimensions of a search, in the order of their keys.

    Args:
        lines: KEY=VALUES each. base: what all trainings have in common.

    Raises:
        UserError: nothing is searched, a line cannot be read, or a key or value is none that can be searched.
    """
    if not lines:
        raise UserError("nothing is searched", where="sweep.search", hint=f"give --search KEY=VALUES, {_EXAMPLE}")
    space: dict[str, Dimension] = {}
    for line in lines:
        key, equals, text = (part.strip() for part in line.partition("="))
        if not equals or not key or not text:
            raise UserError(f"{line!r} is not KEY=VALUES", where="search", hint=_EXAMPLE)
        if key in space:
            raise UserError("searched twice", where=f"search {key}", hint="give its values in one list or range")
        space[key] = _dimension(key, text, _field(key, base))
    return tuple(space[key] for key in sorted(space))


def combinations(space: Sequence[Dimension]) -> int | None:
    """How many there are; None where a range has no end of them."""
    return None if any(not each.values for each in space) else math.prod(len(each.values) for each in space)


def combination(space: Sequence[Dimension], place: int) -> dict[str, Any]:
    """The combination of lists at a place of their product: the last key changes first."""
    chosen = {}
    for each in reversed(space):
        place, index = divmod(place, len(each.values))
        chosen[each.key] = each.values[index]
    return {each.key: chosen[each.key] for each in space}


def shuffled(place: int, size: int, seed: int) -> int:
    """Where the combination of that place stands in an order drawn by the seed: a permutation, so none comes twice."""
    return int(permute(np.array([place]), size, epoch_keys("sweep", seed, "combinations", 0))[0])


def child_config(base: PipelineConfig, parameters: Mapping[str, Any]) -> PipelineConfig:
    """The configuration of a training of the sweep.

    Args:
        parameters: values by dotted key.

    Raises:
        UserError: these values do not go together.
    """
    values = base.model_dump()
    if "train.steps" in parameters and _has_usual_warmup(base):
        del values["train"]["warmup_steps"]  # as large a share of the steps as the preset's
    for key, value in parameters.items():
        section, _, leaf = key.partition(".")
        inner = {"mixture": {leaf.partition(".")[2]: value}} if key.startswith(_MIXTURE) else {leaf: value}
        values = deep_merge(values, {section: inner})
    config: PipelineConfig = parse(PipelineConfig, values)
    return config


def chosen_values(config: PipelineConfig) -> dict[str, Any]:
    """What a file must say for this configuration: the preset, and all that differs from it, in sections."""
    usual = PipelineConfig(preset=config.preset).model_dump(mode="json")
    values = {"preset": config.preset, **_differing(config.model_dump(mode="json"), usual)}
    if PipelineConfig.model_validate(values) != config:  # with fewer steps the preset's own warm-up would be shorter
        values = deep_merge(values, {"train": {"warmup_steps": config.train.warmup_steps}})
    return values


def _differing(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    differing: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(usual.get(key), dict):
            if inner := _differing(value, usual[key]):
                differing[key] = inner
        elif value != usual.get(key):
            differing[key] = value
    return differing


def _has_usual_warmup(base: PipelineConfig) -> bool:
    """Whether the warm-up is the preset's share of the steps, and nobody chose another."""
    usual: dict[str, int] = preset_values(base.preset)["train"]
    share = usual["warmup_steps"] * min(base.train.steps, usual["steps"]) // usual["steps"]
    return base.train.warmup_steps == share


def _field(key: str, base: PipelineConfig) -> TypeAdapter[Any]:
    """What a value of this key must be.

    Raises:
        UserError: there is no such key, or the trainings would not differ by it, or not be comparable.
    """
    section, _, leaf = key.partition(".")
    place = f"search {key}"
    if key.startswith(_MIXTURE) and key != _MIXTURE:
        return TypeAdapter(Annotated[float, Field(ge=0)])
    roles = field_roles(PipelineConfig)
    if key not in roles:
        possible = [name for name, role in roles.items() if role == "result" and name.startswith(SECTIONS)]
        hint = "name one of its keys, as in model.n_embd=64,128" if key in SECTIONS else nearest(key, possible)
        raise UserError("unknown key", where=place, hint=hint)
    if roles[key] == "operational" or section in _LATER:
        raise UserError("it does not change what a training comes to", where=place, hint=_SEARCHED)
    if section not in SECTIONS or key == "train.device":
        raise UserError("it is the same for all trainings of a sweep", where=place, hint=_SEARCHED)
    if section == "model" and leaf != "dropout" and base.init != "scratch":
        free = "train, or model.dropout" if base.model.architecture == "gpt2" else "train"
        raise UserError(
            f"the model has the shape of the weights it starts from, init={base.init}",
            where=place,
            hint=f"search keys of {free}, or set init=scratch",
        )
    kind: Any = PipelineConfig.model_fields[section].annotation
    assert issubclass(kind, Section)
    info = kind.model_fields[leaf]
    annotation: Any = info.annotation
    return TypeAdapter(Annotated[annotation, *info.metadata] if info.metadata else annotation)


def _dimension(key: str, text: str, kind: TypeAdapter[Any]) -> Dimension:
    place = f"search {key}"
    if (ends := _RANGE.fullmatch(text)) is None:
        values = [_value(key, part, kind) for part in text.split(",")]
        if len(set(map(repr, values))) < len(values):
            raise UserError(f"{text!r} holds a value twice", where=place, hint="give each value once")
        if not all(isinstance(value, (bool, int, float, str)) for value in values):
            raise UserError("its values are no numbers, words or truth values", where=place, hint=_REFERENCE)
        return Dimension(key, text, values=tuple(values))
    low, high = (_value(key, ends[name], kind) for name in ("low", "high"))
    if not all(type(end) in (int, float) for end in (low, high)):
        raise UserError("only numbers have a range", where=place, hint=f"give a list: {key}=A,B")
    if low >= high:
        raise UserError(f"{text!r} does not go upwards", where=place, hint="write the smaller end first")
    spans = low > 0 and high / low >= _LOG_FROM
    log = ends["scale"] == "log" or (ends["scale"] is None and spans)
    if log and low <= 0:
        raise UserError(f"{low:g} has no place on a log scale", where=place, hint="begin above 0, or write :linear")
    return Dimension(key, text, low=low, high=high, log=log, whole=type(low) is int and type(high) is int)


def _value(key: str, text: str, kind: TypeAdapter[Any]) -> Any:
    """One value of a key, as the configuration takes it."""
    place, text = f"search {key}", text.strip()
    if not text:
        raise UserError("an empty value", where=place, hint=_EXAMPLE)
    value: Any = read_override(f"{key}={text}", PipelineConfig)
    for part in key.split("."):
        value = value[part]
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{text}: {complaint(error)}", where=place, hint=_REFERENCE) from None
