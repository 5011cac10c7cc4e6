"""`gptpipe evaluate`: how good weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from gptpipe.cli.model_options import NOTHING, model_options
from gptpipe.cli.options import (
    ConfigFile,
    Json,
    Overrides,
    WeightsOption,
    named,
    named_options,
    print_answer,
    read_text,
    token_cache,
    tracking,
)
from gptpipe.config import EvaluateConfig, load_config
from gptpipe.errors import UserError
from gptpipe.wording import counted, figure


@model_options(EvaluateConfig, "stride", context_length="--context", tasks="--task")
def evaluate(
    weights: WeightsOption,
    data: Annotated[str | None, typer.Option(help="Dataset whose split is scored.")] = None,
    text: Annotated[str | None, typer.Option(help="Text file, or - for standard input.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Score these on the same documents too, and compare.")
    ] = None,
    chosen: Mapping[str, Any] = NOTHING,
    apart: Annotated[
        bool, typer.Option("--apart", help="Each document on its own after <|endoftext|>, as lm_eval has them.")
    ] = False,
    page: Annotated[
        str | None,
        typer.Option(metavar="FILE", callback=named, help="Write a page that shows the loss in the text, .html."),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Cross-entropy, perplexity and bits per byte over a dataset's split or a text."""
    values = {**chosen, **({"documents": "apart"} if apart else {})}
    tasks = values.pop("tasks", [])
    given = named_options({"evaluate": values}, context_length="--context")
    options = load_config(file=config, overrides=overrides, options=given, evaluate=values).evaluate
    if config is None and not any("evaluate.max_tokens" in o for o in overrides or []):
        options = options.model_copy(update={"max_tokens": 0})
    options = options.model_copy(update={"tasks": [*options.tasks, *tasks]})
    content = read_text(text) if text is not None else None
    if content == "":
        where = "standard input" if text == "-" else str(text)
        raise UserError("there is no text", where=where, hint="give a longer text")
    if page and not page.endswith(".html"):
        raise UserError("not the name of a page", where=f"--page {page}", hint="give one that ends in .html")
    from gptpipe import storage
    from gptpipe.evaluation.confidence import by_corpus
    from gptpipe.evaluation.evaluate import compare_tallies, evaluate_whole, in_one_window
    from gptpipe.evaluation.result import Against
    from gptpipe.tracking.registry import resolve_weights
    from gptpipe.weights.find import read_weights

    where = storage.normalize(page) if page else ""
    if where:
        storage.check_writable(storage.parent(where))
    track, cache = tracking(), token_cache() if data is not None else None
    own = read_weights(resolve_weights(weights, track))
    # wrong ones are named before any are scored
    others = read_weights(resolve_weights(against, track)) if against else None
    if others is not None:
        options = in_one_window(options, own, others)
    scored = evaluate_whole(own, data=data, text=content, config=options, cache=cache)
    evaluation = replace(scored.evaluation, page=where)
    columns = [evaluation.numbers]
    size = f"{counted(evaluation.tokens, 'token')}, {counted(evaluation.bytes, 'byte')}"
    notes = [f"scored: {evaluation.scored}, {evaluation.windows}, {evaluation.precision}; {size}"]
    if where:
        storage.write_bytes(where, scored.page().encode())
        notes.append(f"page: {where}")
    if others is not None:
        tally, names = scored.tally, scored.documents.corpus_names
        del scored  # one model at a time
        other = evaluate_whole(others, data=data, text=content, config=options, cache=cache)
        comparison = compare_tallies(other.tally, tally)
        nats = other.tally.document_nats, tally.document_nats
        corpora = by_corpus(*nats, tally.document_tokens, names)
        evaluation = replace(evaluation, against=Against(other.evaluation, comparison, corpora))
        columns.append(other.evaluation.numbers)
        notes.append(f"against {other.evaluation.weights}: {comparison.sentence}")
    print_answer(
        evaluation.as_dict(), as_json, "\n".join([evaluation.sentence, "", *_side_by_side(columns), "", *notes])
    )


def _side_by_side(columns: list[dict[str, Any]]) -> list[str]:
    """Lines of numbers under each other, a column per model."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    width = max(len(name) for name in names)
    heads = [] if len(columns) == 1 else [" " * width + "".join(f"{head:>20}" for head in ("weights", "against"))]

    def cell(column: dict[str, Any], name: str) -> str:
        return figure(column.get(name), "only of a whole" if name in column else "–")

    return [*heads, *(f"{name:<{width}}" + "".join(f"{cell(c, name):>20}" for c in columns) for name in names)]
