"""The finished runs of an experiment as points of a scaling law."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptpipe.errors import UserError
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.comparison import find_run
from gptpipe.tracking.results import DECIDING
from gptpipe.tracking.scaling import Point
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
    left = Counter(filter(None, map(_why_not, runs)))
    whole = [run for run in runs if not _why_not(run)]
    texts = Counter(run.data.tags.get("scored_on", "") for run in whole)
    if not texts:
        raise UserError("no finished, scored training", where=tracking.experiment, hint="run some: gptpipe run")
    text, _ = texts.most_common(1)[0]
    chosen = [run for run in whole if run.data.tags.get("scored_on", "") == text]
    left[f"not scored on the {text}"] += len(whole) - len(chosen)
    if total := left.total():
        reasons = ", ".join(f"{count:,} {why}" for why, count in left.items() if count)
        log.info("fit-scaling: %s left out: %s", counted(total, "run"), reasons)
    return [_point(run) for run in chosen]


def _why_not(run: Run) -> str:
    """Why a run says nothing of the law, whatever it was scored on; empty where it does."""
    if not all(run.data.metrics.get(key) for key in _NEEDED):
        return "not finished and scored"
    return "" if run.data.params.get("init", "scratch") == "scratch" else "not from scratch"


def _point(run: Run) -> Point:
    metrics = run.data.metrics
    flops, tokens = metrics["train/flops"], metrics["train/tokens"]
    return Point(
        str(run.info.run_name), flops / (6 * tokens), tokens, metrics[DECIDING], flops / metrics["train/active_seconds"]
    )
