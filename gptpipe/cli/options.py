"""Options that several commands have, and how a command answers."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptpipe.config import PRESETS, PipelineConfig, load_config
from gptpipe.config.form import corpus_of
from gptpipe.config.settings import settings
from gptpipe.errors import UserError
from gptpipe.wording import visible

if TYPE_CHECKING:
    from gptpipe.dataset.cache import TokenCache
    from gptpipe.tracking.client import Tracking

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, logs on stderr.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with any of the configuration's keys.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One value, e.g. train.steps=200; may be given several times."),
]
Preset = Annotated[str | None, typer.Option(help=f"Settings to start from: {', '.join(PRESETS)}.")]
Corpora = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        metavar="URL",
        help="Text to train on: file, folder, glob, s3:// or stdlib:; NAME=URL gives it a name.",
    ),
]
StoreOption = Annotated[str | None, typer.Option("--storage", help="Folder or s3:// URL for everything that is made.")]
InitOption = Annotated[
    str | None, typer.Option("--init", metavar="WEIGHTS", help="Weights to start from: fine-tuning.")
]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights", help="Checkpoint or its parent, Hugging Face folder, .safetensors, .pth, or models:/NAME@ALIAS."
    ),
]


def tracking() -> Tracking:
    """Where runs and models are tracked, by the settings."""
    from gptpipe.tracking.client import Tracking

    return Tracking.of(settings())


def token_cache() -> TokenCache:
    """This machine's decoded tokens, within the bound that the settings name."""
    from gptpipe.dataset.cache import TokenCache

    return TokenCache(limit=settings().cache_bytes)


def named(value: str | None) -> str | None:
    """An empty name would be the current folder, or nothing at all."""
    if value is not None and not value.strip():
        raise UserError("an empty name", where="where to write", hint="give a file, folder or URL")
    return value


def page_name(value: str | None) -> str | None:
    """The name of a page of HTML."""
    return _ending(value, "page", "--html", ".html")


def picture_name(value: str | None) -> str | None:
    """The name of a picture."""
    return _ending(value, "picture", "--picture", ".png")


def _ending(value: str | None, kind: str, option: str, ending: str) -> str | None:
    if named(value) is not None and not str(value).endswith(ending):
        raise UserError(f"not the name of a {kind}", where=f"{option} {value}", hint=f"give one that ends in {ending}")
    return value


HtmlOption = Annotated[
    str | None, typer.Option("--html", metavar="FILE", callback=page_name, help="Write the page, .html.")
]
PictureOption = Annotated[
    str | None, typer.Option("--picture", metavar="FILE", callback=picture_name, help="Write a picture, .png.")
]


def print_answer(values: dict[str, Any], wants_json: bool, text: str) -> None:
    try:
        # what a model says, or a file is called, may hold a terminal's commands; a file gets it as it is
        shown = visible(text) if sys.stdout.isatty() else text
        print(json.dumps(values) if wants_json else shown, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where="standard output", hint="write it to another disk"
        ) from None


def configure(
    config: Path | None,
    overrides: list[str] | None,
    preset: str | None = None,
    corpora: list[str] | None = None,
    **given: Any,
) -> PipelineConfig:
    values = {**corpora_values(corpora), **given}
    options = {**named_options(given), **corpora_options(corpora)}
    return load_config(preset=preset, file=config, overrides=overrides, options=options, **values)


def named_options(values: Mapping[str, Any], above: str = "", **flags: str) -> dict[str, str]:
    """The options that gave values of the configuration, by dotted key, as the command line has them.

    Args:
        flags: of options that are not called like the last part of their key, by that part.
    """
    options: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            options |= named_options(value, f"{above}{name}.", **flags)
        elif value is not None:
            flag = flags.get(name, f"--{name.replace('_', '-')}")
            options[above + name] = " ".join(f"{flag} {one}" for one in (value if isinstance(value, list) else [value]))
    return options


def corpora_values(corpora: list[str] | None) -> dict[str, Any]:
    """What `--corpus` gives a configuration."""
    return {"data": {"corpus": [corpus_value(text) for text in corpora]}} if corpora else {}


def corpora_options(corpora: list[str] | None) -> dict[str, str]:
    """The options that `corpora_values` are from, by dotted key."""
    return {f"data.corpus.{number}": f"--corpus {text}" for number, text in enumerate(corpora or [])}


def corpus_value(text: str) -> dict[str, str]:
    return {"url": text} if Path(text).exists() else corpus_of(text)


def command_name(name: str) -> str:
    """How this environment's `name` is called in a shell: by its path where it is not the one on PATH."""
    beside = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    if not beside.exists() or (on_path and Path(on_path).resolve() == beside.resolve()):
        return name
    path = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return shlex.quote(str(path))


def located(command: str) -> str:
    return command.replace("mlflow ", f"{command_name('mlflow')} ", 1) if command.startswith("mlflow ") else command


def read_text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise UserError(error.strerror or str(error), where=name, hint="give an existing text file, or -") from None
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8", where=name, hint="convert the file to UTF-8") from None
