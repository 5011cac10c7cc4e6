"""`gptpipe sweep`: many trainings that differ in a few keys, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptpipe.cli.model_options import NOTHING, model_options
from gptpipe.cli.options import (
    ConfigFile,
    Corpora,
    InitOption,
    Json,
    Overrides,
    Preset,
    StoreOption,
    corpora_options,
    corpora_values,
    located,
    named_options,
    print_answer,
)
from gptpipe.cli.pipeline import in_place, use_storage
from gptpipe.config import PipelineConfig, SweepConfig, deep_merge, load_sweep

if TYPE_CHECKING:
    from gptpipe.sweep.result import SweepResult
    from gptpipe.tracking.client import RunLink


@model_options(SweepConfig, "method", "trials", "parallel", "name", "seed", "reduction", "rungs")
def sweep(
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=VALUES",
            help="train.learning_rate=1e-4..1e-2 or model.n_embd=64,128; may be given several times.",
        ),
    ] = None,
    chosen: Mapping[str, Any] = NOTHING,
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    corpus: Corpora = None,
    storage: StoreOption = None,
    init: InitOption = None,
    as_json: Json = False,
) -> None:
    """Train many times with other settings, side by side, and print the best ones' YAML, the table before it."""
    use_storage(storage)
    values = deep_merge(dict(chosen), {"search": search} if search else {})
    base, options = load_sweep(
        preset=preset,
        file=config,
        overrides=overrides,
        options={**named_options({"init": init, "sweep": values}), **corpora_options(corpus)},
        init=init,
        sweep=values,
        **corpora_values(corpus),
    )
    from gptpipe.sweep.plan import Plan

    Plan.of(base, options)  # what is wrong is said before anything starts
    result, run = in_place(base, partial(_sweep, base, options))
    answer = {**result.as_dict(), "yaml": result.yaml, "run_id": run.run_id, "experiment_id": run.experiment_id}
    print_answer(answer, as_json, _summary(result, run))


def _sweep(base: PipelineConfig, options: SweepConfig) -> Any:
    from flows.sweep import SweepParameters
    from flows.sweep import sweep as flow

    given = {"sweep": options.model_dump(mode="json"), "pipeline": base.model_dump(mode="json")}
    return flow(SweepParameters.model_validate(given))


def _summary(result: SweepResult, run: RunLink) -> str:
    """All but the best one's settings is a comment: the whole is a file for `gptpipe run --config`."""
    from gptpipe.sweep.result import plain_table

    lines = [result.sentence, "", *plain_table(result), ""]
    lines += [f"importance of {key}: {share:.0%}" for key, share in result.importances.items()]
    lines.append(f"look at  {located(run.how_to_open)}")
    return "\n".join([*(f"# {line}".rstrip() for line in lines), result.yaml.rstrip()])
