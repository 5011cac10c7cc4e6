"""`gptpipe train`: one training on a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gptpipe.cli.model_options import NOTHING, model_options
from gptpipe.cli.options import (
    ConfigFile,
    Json,
    Overrides,
    Preset,
    configure,
    located,
    named,
    print_answer,
    token_cache,
    tracking,
)
from gptpipe.config import TrainConfig


@model_options(TrainConfig, "nproc")
def train(
    data: Annotated[str, typer.Option(help="Dataset, or the folder of datasets (the one made last).")],
    out: Annotated[str, typer.Option(callback=named, help="Folder or URL; the training lies in <out>/<id>/.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    init: Annotated[str | None, typer.Option(help="WEIGHTS to start from.")] = None,
    since: Annotated[
        str, typer.Option(metavar="DATASET", help="What those weights have seen: draw more of what is new since.")
    ] = "",
    chosen: Mapping[str, Any] = NOTHING,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the newest checkpoint.")] = True,
    force: Annotated[bool, typer.Option("--force", help="A new attempt even if this training is finished.")] = False,
    as_json: Json = False,
) -> None:
    """Train on a dataset, followed into MLflow."""
    options = configure(config, overrides, preset, train=dict(chosen))
    if force:
        options = options.model_copy(update={"force": True})
    from gptpipe import storage
    from gptpipe.pipeline.speed import speed_tags
    from gptpipe.tracking.registry import starting_weights
    from gptpipe.tracking.training import train_and_track
    from gptpipe.weights.adapt import import_name, import_weights, starting_from

    track, checkpoint = tracking(), ""
    if init:
        options = options.model_copy(update={"init": init})
    if source := starting_weights(options, track):
        context = options.init_context_length
        name = import_name(source, context_length=context)
        place = storage.join(storage.normalize(out), "init", name)
        checkpoint = import_weights(source, place, context_length=context).url
    options = starting_from(options, checkpoint)
    result, link = train_and_track(
        options,
        track,
        data=data,
        out=out,
        init=checkpoint,
        since=since,
        resume=resume,
        tags=speed_tags(options),
        cache=token_cache(),
    )
    values = {**result.as_dict(), "run_id": link.run_id if link else None}
    done = "already done: " if result.already_done else ""
    text = f"{done}{result.steps:,} steps, {result.tokens:,} tokens → {result.checkpoint}"
    if result.validation_loss is not None:
        text += f"\nvalidation loss {result.validation_loss:.3f}"
    print_answer(values, as_json, text + (f"\nlook at  {located(link.how_to_open)}" if link else ""))
