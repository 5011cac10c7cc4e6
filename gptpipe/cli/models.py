"""`gptpipe rollback`: an earlier version of the registered model serves again."""

from __future__ import annotations

from typing import Annotated

import typer

from gptpipe.cli.options import ConfigFile, Json, Overrides, print_answer, tracking
from gptpipe.config import load_config


def rollback(
    to: Annotated[str, typer.Option(metavar="VERSION", help="By default the one that was champion before.")] = "",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make an earlier version of the registered model champion again."""
    from gptpipe.tracking.registry import rollback as move_back

    promote = load_config(file=config, overrides=overrides).promote
    before, now = move_back(promote, tracking(), to)
    text = f"{promote.model_name}: version {now} is {promote.alias}, version {before} was"
    print_answer({"model": promote.model_name, "champion": now, "previous": before}, as_json, text)
