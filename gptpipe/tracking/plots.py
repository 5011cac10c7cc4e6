"""Pictures: losses of trainings, lengths of documents, the law of a scaling fit, and the trainings of a sweep."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from gptpipe.sweep.result import SweepResult
from gptpipe.sweep.space import Dimension
from gptpipe.tracking.scaling import Fit

TRAIN, _VALIDATION, BASELINE, _INK = "#2f6fb3", "#c8501e", "#6b6b6b", "#222222"
_LONGEST_LABEL = 60  # characters


def length_histogram(rows: list[tuple[int, int, int]], title: str = "") -> bytes:
    """A PNG of how many documents are how long.

    Args:
        rows: (fewest tokens, most tokens, documents), as `gptpipe.dataset.inspect` gives them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(rows)), [count for _, _, count in rows], color=TRAIN, width=0.9)
    axes.set_xticks(range(len(rows)), [f"{low:,}" for low, _, _ in rows], rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("tokens per document, from")
    axes.set_ylabel("documents")
    axes.set_title(title, color=_INK, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def loss_curve(
    lines: list[dict[str, Any]], *, unigram: float | None = None, title: str = "", ended: bool = True
) -> bytes:
    """A PNG of training and validation loss (nats per token) over tokens.

    Args:
        lines: of metrics.jsonl.
        ended: whether the last of them is the training's last.
        unigram: cross-entropy of the text's own token frequencies, drawn as a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for key, label, color, style in (
        ("train/loss", "training", TRAIN, {"linewidth": 1.2}),
        ("validation/loss", "validation", _VALIDATION, {"linewidth": 1.8, "marker": "o", "markersize": 4}),
    ):
        points = [(line["tokens"], line[key]) for line in lines if key in line]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=color, label=f"{label} ({ys[-1]:.2f} {'at the end' if ended else 'now'})", **style)
    if unigram is not None:
        axes.axhline(
            unigram,
            color=BASELINE,
            linestyle="--",
            linewidth=1,
            label=f"token frequencies alone ({unigram:.2f})",
        )
    _finish(axes, title)
    return png_of(figure)


def loss_curves(runs: Mapping[str, Mapping[str, list[tuple[int, float]]]]) -> bytes:
    """A PNG of the losses (nats per token) of several runs over tokens: training thin, validation with points, as its
    legend says.

    Args:
        runs: by name, `train/loss` and `validation/loss` as (tokens, loss).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, curves) in enumerate(runs.items()):
        color = f"C{number % 10}"
        if points := curves.get("train/loss"):
            axes.plot(*zip(*points, strict=True), color=color, linewidth=0.8, alpha=0.6)
        points = curves.get("validation/loss") or []
        short = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
        label = f"{short} ({points[-1][1]:.3f})" if points else short
        xs, ys = zip(*points, strict=True) if points else ((), ())
        axes.plot(xs, ys, color=color, marker="o", markersize=4, label=label)
    axes.plot([], [], color=BASELINE, linewidth=0.8, alpha=0.6, label="thin: training")
    axes.plot([], [], color=BASELINE, marker="o", markersize=4, label="with points: validation")
    _finish(axes, "")
    return png_of(figure)


def law_picture(fitted: Fit) -> bytes:
    """A PNG: the runs by their FLOPs, the law for each size of model, and the best that FLOPs can reach by it."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted({point.parameters for point in fitted.points})
    most, least = (pick(point.flops for point in fitted.points) for pick in (max, min))
    for number, size in enumerate(sizes):
        color = colormaps["viridis"](number / max(1, len(sizes) - 1) * 0.9)
        those = [point for point in fitted.points if point.parameters == size]
        axes.scatter([each.flops for each in those], [each.loss for each in those], color=color, zorder=3)
        tokens = np.geomspace(min(each.tokens for each in those) / 2, max(each.tokens for each in those) * 2, 60)
        losses = [fitted.law.loss(size, each) for each in tokens]
        axes.plot(6 * size * tokens, losses, color=color, linewidth=1, label=f"N = {size:.3g}")
    flops = np.geomspace(least, most * 30, 100)
    axes.plot(flops, [fitted.law.loss(*fitted.law.best(each)) for each in flops], "k--", label="best for the FLOPs")
    axes.axhline(fitted.law.irreducible, color="#888", linewidth=1, label=f"E = {fitted.law.irreducible:.3f}")
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(fitted.sentence, fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return png_of(figure)


def parallel_coordinates(result: SweepResult) -> bytes:
    """A PNG of a sweep: an axis for each key and one for the loss, a line for each training, the best one's thick.

    A line of a training that finished has the color of its loss, one that was stopped early is grey. Empty where no
    training has a loss.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = [row for row in reversed(result.ranking) if row.loss is not None and row.copy_of is None]
    if not rows:
        return b""
    space, losses = result.plan.space, [row.loss for row in rows if row.loss is not None]
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    worst = max((row.loss for row in rows if row.state == "finished" and row.loss is not None), default=high)
    figure = Figure(figsize=(2.2 * (len(space) + 1), 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    best = result.best
    for row, loss in zip(rows, losses, strict=True):
        heights = [*(_height(each, row.parameters[each.key]) for each in space), (loss - low) / span]
        shade = (loss - low) / ((worst - low) or 1.0)
        color = colormaps["viridis"](shade * 0.9) if row.state == "finished" else "#b8b8b8"
        axes.plot(range(len(heights)), heights, color=color, linewidth=3.0 if row is best else 1.1, alpha=0.9)
    for place, dimension in enumerate(space):
        axes.axvline(place, color=_INK, linewidth=0.8)
        for height, label in _ticks(dimension):
            axes.annotate(label, (place, height), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.axvline(len(space), color=_INK, linewidth=0.8)
    for height, loss in {0.0: low, 1.0: high}.items():
        axes.annotate(f"{loss:.3f}", (len(space), height), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(space) + 1), [*(each.key for each in space), "loss (nats per token)"], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.3, len(space) + 0.35)
    axes.set_title(f"{result.plan.name}: {len(rows)} trainings", color=_INK, fontsize=11)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return png_of(figure)


def _height(dimension: Dimension, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1: those of a list at equal distances, smaller numbers lower."""
    if dimension.values:
        return _in_order(dimension).index(value) / max(1, len(dimension.values) - 1)
    ends = np.array([dimension.low, value, dimension.high], dtype=float)
    low, at, high = np.log(ends) if dimension.log else ends
    return float((at - low) / (high - low))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    values = _in_order(dimension) if dimension.values else [dimension.low, dimension.high]
    return [(_height(dimension, value), f"{value:g}" if type(value) is float else str(value)) for value in values]


def _in_order(dimension: Dimension) -> list[Any]:
    are_numbers = all(type(value) in (int, float) for value in dimension.values)
    return sorted(dimension.values) if are_numbers else list(dimension.values)


def _finish(axes: Any, title: str) -> None:
    """Tokens to the right, loss upwards, a legend without a frame."""
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k" if x else "0")
    axes.set_title(title, color=_INK, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def png_of(figure: Any) -> bytes:
    """A figure of matplotlib as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)  # type: ignore[no-untyped-call]
    return out.getvalue()
