"""The finished runs of an experiment as points of a scaling law, and the law in a picture."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptpipe.errors import UserError
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.comparison import find_run
from gptpipe.tracking.results import DECIDING
from gptpipe.tracking.scaling import Fit, Point
from gptpipe.wording import counted

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)

_NEEDED = ("train/flops", "train/tokens", "train/active_seconds", DECIDING)
_PAGE = 1000


def scaling_points(tracking: Tracking, names: Sequence[str]) -> list[Point]:
    """Finished trainings that began from random weights and were scored on the same text; others are counted and said.

    Args:
        names: of runs, as `gptpipe compare` takes them; without any, all of the experiment.
    """
    with tracking.reached() as client:
        if names:
            runs = [find_run(client, tracking, name) for name in names]
        else:
            runs, token = [], None
            while True:
                page = client.search_runs(
                    [tracking.experiment_id(client)], "status = 'FINISHED'", max_results=_PAGE, page_token=token
                )
                runs += page
                if not (token := page.token):
                    break
    whole = [run for run in runs if all(run.data.metrics.get(key) for key in _NEEDED) and _is_from_scratch(run)]
    texts = Counter(run.data.tags.get("scored_on", "") for run in whole)
    if not texts:
        raise UserError("no finished, scored training", where=tracking.experiment, hint="run some: gptpipe run")
    text, _ = texts.most_common(1)[0]
    chosen = [run for run in whole if run.data.tags.get("scored_on", "") == text]
    if left := len(runs) - len(chosen):
        log.info(
            "fit-scaling: %s left out: not finished, not from scratch, or not scored on the %s",
            counted(left, "run"),
            text,
        )
    return [_point(run) for run in chosen]


def _is_from_scratch(run: Run) -> bool:
    return run.data.params.get("init", "scratch") == "scratch"


def _point(run: Run) -> Point:
    metrics = run.data.metrics
    flops, tokens = metrics["train/flops"], metrics["train/tokens"]
    return Point(
        str(run.info.run_name), flops / (6 * tokens), tokens, metrics[DECIDING], flops / metrics["train/active_seconds"]
    )


def law_picture(fitted: Fit) -> bytes:
    """A PNG: the runs by their FLOPs, the law for each size of model, and the best that FLOPs can reach by it."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)  # type: ignore[no-untyped-call]
    return out.getvalue()
