"""Options that are made from the configuration's models: nothing about them stands twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.cli.model_options import NOTHING, model_of, model_options
from gptpipe.config import SampleConfig
from gptpipe.errors import UserError

got: dict[str, Any] = {}
probe = typer.Typer(rich_markup_mode=None)


@probe.command()
@model_options(SampleConfig, "top_k", "stop", "slide", temperature="--heat")
def command(first: str, chosen: Mapping[str, Any] = NOTHING, last: bool = False) -> None:
    """A command."""
    got.clear()
    got.update(chosen, first=first, last=last)


def run(*words: str) -> dict[str, Any]:
    ended = CliRunner().invoke(probe, list(words))
    assert ended.exit_code == 0, ended.output
    return dict(got)


def test_the_command_gets_what_was_given_and_nothing_else() -> None:
    assert run("a") == {"first": "a", "last": False}
    assert run("a", "--top-k", "7", "--heat", "0.5", "--stop", "x", "--stop", "y", "--last") == {
        "first": "a", "last": True, "top_k": 7, "temperature": 0.5, "stop": ["x", "y"]
    }  # fmt: skip


def test_help_says_what_the_model_says() -> None:
    text = " ".join(CliRunner().invoke(probe, ["--help"]).output.split())
    field = SampleConfig.model_fields["top_k"]
    assert f"Draw from the k likeliest tokens; 0 is all. [default: {field.default}]" in text
    assert "--heat" in text
    assert "may be given several times" in text
    assert "one|half" in text


def test_a_value_of_another_kind_is_refused_by_the_option() -> None:
    ended = CliRunner().invoke(probe, ["a", "--top-k", "many"])
    assert ended.exit_code == 2
    assert "--top-k" in ended.output


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("slide", "far")])
def test_a_value_that_the_model_refuses_names_the_option(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}") as refused:
        model_of(SampleConfig, run("a", f"--{name.replace('_', '-')}", str(value)) | {name: value}, "generate")
    assert "generate --help" in refused.value.hint


def test_generate_has_an_option_for_every_field_of_its_model() -> None:
    text = CliRunner().invoke(app, ["generate", "--help"]).output
    for name in SampleConfig.model_fields.keys() - {"prompts"}:
        assert f"--{name.replace('_', '-')}" in text, name
