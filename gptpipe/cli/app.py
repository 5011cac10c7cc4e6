"""The command's root, with every command in the order of its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from gptpipe.cli.data import inspect, tokenize
from gptpipe.cli.evaluation import evaluate
from gptpipe.cli.generation import generate
from gptpipe.cli.lineage import lineage
from gptpipe.cli.listings import corpora, presets
from gptpipe.cli.models import approve, compare, fit_scaling, reproduce, rollback
from gptpipe.cli.pipeline import plan, run
from gptpipe.cli.report import report
from gptpipe.cli.retention import clean
from gptpipe.cli.services import deploy, doctor, down, up, worker
from gptpipe.cli.sweep import sweep
from gptpipe.cli.training import train
from gptpipe.cli.weights import export, import_
from gptpipe.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Raw text in, an evaluated and registered GPT out, again every night.",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"gptpipe {__version__}")
        raise typer.Exit()


_COMMANDS: tuple[Callable[..., None], ...] = (
    run,
    plan,
    tokenize,
    inspect,
    train,
    evaluate,
    generate,
    import_,
    export,
    compare,
    sweep,
    report,
    reproduce,
    fit_scaling,
    rollback,
    approve,
    lineage,
    clean,
)
_SERVICES: tuple[Callable[..., None], ...] = (corpora, presets, up, down, worker, deploy, doctor)
for _command in (*_COMMANDS, *_SERVICES):
    app.command(name=_command.__name__.rstrip("_").replace("_", "-"))(_command)
