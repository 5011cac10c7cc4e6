"""`gptpipe tokenize` and `inspect`: token datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gptpipe.cli.model_options import NOTHING, model_options
from gptpipe.cli.options import (
    ConfigFile,
    Corpora,
    Json,
    Overrides,
    corpora_options,
    corpora_values,
    named,
    named_options,
    print_answer,
)
from gptpipe.config import DataConfig, deep_merge, load_config
from gptpipe.errors import UserError
from gptpipe.wording import counted


@model_options(DataConfig, "tokenizer", "validation", "workers")
def tokenize(
    corpus: Corpora = None,
    out: Annotated[str, typer.Option(callback=named, help="Folder or URL; the dataset lies in <out>/<id>/.")] = ...,  # type: ignore[assignment]
    chosen: Mapping[str, Any] = NOTHING,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Corpora to Parquet token shards."""
    if not corpus and config is None and not any((o or "").startswith("data.corpus") for o in overrides or []):
        raise UserError("no corpus", where="--corpus", hint="give a file, folder, glob, s3:// URL, or stdlib:")
    values = deep_merge({"data": dict(chosen)}, corpora_values(corpus))
    given = {**named_options({"data": chosen}), **corpora_options(corpus)}
    options = load_config(file=config, overrides=overrides, options=given, **values).data
    from gptpipe.corpus.build import tokenize as make_dataset

    result = make_dataset(options, out)
    dropped = ", ".join(f"{count:,} left out: {reason}" for reason, count in result.dropped.items())
    sizes = " + ".join(f"{tokens:,} {split}" for split, tokens in result.splits.items())
    if result.already_done:
        text = f"already done: {result.dataset}"
    else:
        text = (
            f"{counted(result.documents, 'document')}, {counted(result.tokens, 'token')} ({sizes}), "
            f"{counted(result.shards, 'shard')}, "
            f"{result.megabytes_per_second:.1f} MB/s → {result.dataset}"
        )
    print_answer(result.as_dict(), as_json, f"{text}\n{dropped}".rstrip())


def inspect(
    dataset: Annotated[str, typer.Argument(help="Dataset, or the folder of datasets (the one made last).")],
    as_json: Json = False,
) -> None:
    """A dataset at a glance: sizes, lengths, corpora, frequent tokens, excerpts."""
    from gptpipe.dataset.inspect import describe
    from gptpipe.dataset.inspect import inspect as look_at

    inspection = look_at(dataset)
    print_answer(inspection.as_dict(), as_json, describe(inspection))
