"""What a training came to, as a table in Markdown: for its MLflow run, for the registered version and for Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptpipe.config import PipelineConfig
from gptpipe.config.names import chosen
from gptpipe.dataset.dataset import Dataset
from gptpipe.evaluation.result import Evaluation
from gptpipe.generation.degenerate import degenerate_share
from gptpipe.generation.generate import Samples
from gptpipe.launch.training import TrainResult
from gptpipe.tracking.promote import Decision
from gptpipe.wording import cell, counted, duration

_SHOWN = 2  # samples
_LONGEST = 300  # characters of one


def training_summary(
    config: PipelineConfig,
    dataset: Dataset,
    result: TrainResult,
    evaluation: Evaluation,
    samples: Samples,
    lines: Sequence[Mapping[str, Any]],
    decision: Decision | None,
    *,
    parameters: int,
    links: Mapping[str, str] | None = None,
) -> str:
    """A sentence, a table, and the first samples.

    Args:
        lines: of metrics.jsonl.
        decision: whether it became champion; None where no model is registered.
        parameters: of the model.
        links: address by what it shows.
    """
    rows = {
        "loss": _loss(evaluation),
        "against the champion": decision.reason if decision else "no model is registered",
        "scored on": f"{evaluation.scored}: {evaluation.tokens:,} tokens in "
        f"{counted(evaluation.documents, 'document')}, {evaluation.windows}",
        "against what it started from": evaluation.against.comparison.sentence if evaluation.against else "",
        "while training": _while_training(config, lines),
        "changed": chosen(config) or f"nothing: the preset {config.preset} as it is",
        "model": f"{parameters:,} parameters, preset {config.preset}",
        "data": _data(dataset, result),
        "cost": _cost(result, lines),
        "samples": _verdict(samples),
        "checkpoint": result.best_checkpoint,
    }
    table = [f"| {name} | {cell(value)} |" for name, value in rows.items() if value]
    linked = " · ".join(f"[{name}](<{url}>)" for name, url in (links or {}).items())
    shown = [_block(sample.text) for sample in samples.samples[:_SHOWN]]
    checks = decision.table if decision else ""
    parts = [evaluation.sentence, "\n".join(["| | |", "| --- | --- |", *table]), checks, linked, *shown]
    return "\n\n".join(part for part in parts if part)


def _loss(evaluation: Evaluation) -> str:
    interval = evaluation.interval
    sure = f" (95 % interval {interval.low:.3f} to {interval.high:.3f})" if interval else ""
    return (
        f"{evaluation.cross_entropy:.3f} nats per token{sure}, perplexity {evaluation.perplexity:,.1f}, "
        f"{evaluation.bits_per_byte:.3f} bits per byte"
    )


def _while_training(config: PipelineConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    """Other text, other sizes: why these losses differ from the evaluation's."""
    train = _last(lines, "train/loss")
    parts = [f"train/loss {train:.3f}, the mean since the logged step before"] if train is not None else []
    validation = _last(lines, "validation/loss")
    if validation is not None:
        text = f"{config.train.validate_tokens:,} tokens" if config.train.validate_tokens else "all tokens"
        parts.append(f"validation/loss {validation:.3f}, on {text} of the validation split")
    return "; ".join(parts)


def _data(dataset: Dataset, result: TrainResult) -> str:
    there = dataset.total("tokens", "train")
    share = result.tokens / max(1, there)
    seen = f"{share:.1%} of them" if share < 1 else f"{share:.1f} times"
    names = "+".join(dataset.manifest["corpora"])
    return f"{names}: {there:,} tokens to train on, seen {seen}; dataset {dataset.id}"


def _cost(result: TrainResult, lines: Sequence[Mapping[str, Any]]) -> str:
    seconds, hours = _last(lines, "train/active_seconds"), _last(lines, "train/device_hours")
    flops = _last(lines, "train/flops")
    memory = max((float(line["train/memory_mb"]) for line in lines if "train/memory_mb" in line), default=0.0)
    parts = [f"{counted(result.steps, 'step')} over {result.tokens:,} tokens"]
    if seconds is not None and hours is not None:
        parts.append(f"{duration(seconds)} of training, {hours:.3g} device hours")
    if (energy := _last(lines, "train/energy_wh")) is not None:
        parts.append(f"{energy:,.3g} Wh")
    if flops is not None:
        parts.append(f"{flops:.3g} FLOPs")
    if result.tokens_per_second:
        parts.append(f"{result.tokens_per_second:,.0f} tokens/s")
    if memory:
        parts.append(f"{memory / 1e3:.2f} GB per rank at most")
    return ", ".join(parts)


def _verdict(samples: Samples) -> str:
    share, python = degenerate_share(samples.samples), samples.python_lines
    parts = [] if share is None else [f"{share:.0%} degenerate (blank, or the same words over and over)"]
    parts += [] if python is None else [f"{python:.0%} of the lines are Python"]
    return ", ".join(parts)


def _last(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((float(line[key]) for line in reversed(lines) if key in line), None)


def _block(text: str) -> str:
    """Text as it is, indented: no mark in it ends the block."""
    return "\n".join(f"    {line}" for line in text[:_LONGEST].splitlines())
