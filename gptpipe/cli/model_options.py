"""Options made from the configuration: a field's type, default and description stand in its model alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from gptpipe.config import Section, parse
from gptpipe.config.fields import unit_of
from gptpipe.errors import UserError

CHOSEN = "chosen"
NOTHING: Mapping[str, Any] = MappingProxyType({})


Command = Callable[..., None]


def model_options(model: type[Section], *fields: str, **flags: str) -> Callable[[Command], Command]:
    """Put an option for each of these fields in the place of the command's parameter `chosen`.

    The command gets there what the user gave, by the field's name; what was not given is left out. `NOTHING` is the
    default that keeps the parameter's place among others.

    Args:
        fields: whose options are called like them, with hyphens.
        flags: those of other fields, by the field's name.
    """
    names = {**{name: f"--{name.replace('_', '-')}" for name in fields}, **flags}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for parameter in signature.parameters.values():
            if parameter.name == CHOSEN:
                parameters += [_option(model, name, flag) for name, flag in names.items()]
            else:
                parameters.append(parameter)

        def with_chosen(**given: Any) -> None:
            chosen = {name: value for name in names if (value := given.pop(name)) is not None}
            command(**given, **{CHOSEN: chosen})

        with_chosen.__name__, with_chosen.__doc__ = command.__name__, command.__doc__
        with_chosen.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_chosen.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_chosen

    return decorate


def _option(model: type[Section], name: str, flag: str) -> inspect.Parameter:
    field = model.model_fields[name]
    text, unit = str(field.description), unit_of(field)
    help_ = f"{text.removesuffix(f' [{unit}]')}."
    default = field.get_default(call_default_factory=True)
    if isinstance(default, list):
        help_ = f"{help_[:-1]}; may be given several times."
    if default not in ([], None, ""):
        help_ += f"  [default: {default}]"
    # the model itself refuses what is none of the choices, with the option's name and what may stand there
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    kind: Any = str if choices else field.annotation
    option = typer.Option(flag, help=help_, show_default=False, metavar="|".join(choices) or None)
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


def model_of(model: type[Section], chosen: Mapping[str, Any], command: str) -> Any:
    """The model with what was chosen.

    Raises:
        UserError: a value that cannot be used; the option is named.
    """
    try:
        return parse(model, dict(chosen))
    except UserError as error:
        flag = f"--{error.where.replace('_', '-')}"
        raise UserError(error.message, where=flag, hint=f"see `gptpipe {command} --help`") from None
