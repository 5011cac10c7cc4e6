"""Runs side by side: what differs in data and settings, which is better and how surely, how fast, at what cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gptpipe.config import EvaluateConfig, PipelineConfig
from gptpipe.config.names import OPERATIONAL
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import UserError
from gptpipe.evaluation.confidence import Comparison, compare
from gptpipe.evaluation.once import evaluate_against, read_documents
from gptpipe.tracking.client import DATASET_TAG, TRAINING_TAG, RunLink, Tracking
from gptpipe.tracking.names import named_version
from gptpipe.tracking.results import CHECKPOINT_TAG, DECIDING, EVALUATION_TAG
from gptpipe.wording import duration

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Score = Callable[["Run", "Run"], Comparison | None]
_LAST = 5  # runs, where none is named
log = logging.getLogger(__name__)

_SCORED_BY = ("split", "max_tokens", "context_length", "stride", "documents", "precision")
_LOOKED_THROUGH = 5000  # runs of an experiment, for a name or the beginning of an id
_NONE = "–"


@dataclass(frozen=True)
class Column:
    """One run.

    Attributes:
        name, run_id: of the run. url: its page in MLflow. facts: what a person reads, by row.
        settings: what decides its result, by key. against: its loss against the first run's on the same documents.
    """

    name: str
    run_id: str
    url: str
    facts: dict[str, str]
    settings: dict[str, str]
    against: Comparison | None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "against": asdict(self.against) if self.against else None}


@dataclass(frozen=True)
class SideBySide:
    """Runs, the first being the one that the others are compared with."""

    columns: list[Column]

    @property
    def rows(self) -> dict[str, list[str]]:
        """Values by name, one for each run. Settings that are the same in all of them are left out."""
        named = [column.facts for column in self.columns]
        rows = {name: [facts[name] for facts in named] for name in named[0]}
        first, *rest = rows.items()
        keys = dict.fromkeys(key for column in self.columns for key in column.settings)
        values = {key: [column.settings.get(key, _NONE) for column in self.columns] for key in keys}
        differing = {key: each for key, each in values.items() if len(set(each)) > 1}
        return {first[0]: first[1], **differing, **dict(rest)}

    @property
    def sentence(self) -> str:
        """Which is best, by how much and how surely."""
        if len(self.columns) == 1:
            return f"{self.columns[0].name}: one run has nothing to compare with; name another one too"
        scored = [column for column in self.columns if column.against is not None]
        if not scored:
            return "scored on different text, or not scored, so their losses do not compare; --score scores them"
        best = min(scored, key=lambda column: column.against.difference if column.against else 0.0)
        assert best.against is not None
        first = self.columns[0].name
        if best.against.difference >= 0:
            return f"{first} is best: none is better on the same documents"
        return f"{best.name} is best; against {first}: {best.against.sentence}"

    def as_dict(self) -> dict[str, Any]:
        return {"sentence": self.sentence, "rows": self.rows, "runs": [column.as_dict() for column in self.columns]}


def side_by_side(tracking: Tracking, names: Sequence[str], score: Score | None = None) -> SideBySide:
    """Runs of the experiment beside one another.

    Args:
        names: ids, beginnings of ids or of trainings' ids, names of runs, aliases, or models:/…; without any, the last
            five trainings that ended.
        score: what scores a run on the text of the first where it was scored on another; without it they do not
            compare.

    Raises:
        UserError: a name that no run has, or several.
    """
    with tracking.reached() as client:
        runs = [find_run(client, tracking, name) for name in names] or _last(client, tracking)
        tables = [_table(run) for run in runs]
        first, *others = runs
        comparisons = [None, *(_against(tables[0], table) for table in tables[1:])]
        if score is not None:
            known = zip(others, comparisons[1:], strict=True)
            comparisons[1:] = [comparison or score(first, run) for run, comparison in known]
        return SideBySide(
            [
                Column(
                    name=str(run.info.run_name),
                    run_id=run.info.run_id,
                    url=RunLink(tracking, run.info.run_id, run.info.experiment_id).url,
                    facts=facts_of(run, against),
                    settings={key: value for key, value in run.data.params.items() if key not in OPERATIONAL},
                    against=against,
                )
                for run, against in zip(runs, comparisons, strict=True)
            ]
        )


def _last(client: MlflowClient, tracking: Tracking) -> list[Run]:
    """The trainings that ended last, the newest first."""
    ended = "status = 'FINISHED' AND tags.`gptpipe.training` LIKE '%'"
    runs = list(client.search_runs([tracking.experiment_id(client)], ended, max_results=_LAST))
    if not runs:
        raise UserError("no training has ended so far", where=tracking.experiment, hint="run one: gptpipe run")
    return runs


def last_run(tracking: Tracking) -> str:
    """The id of the training that ended last.

    Raises:
        UserError: none has.
    """
    with tracking.reached() as client:
        return str(_last(client, tracking)[0].info.run_id)


def find_run(client: MlflowClient, tracking: Tracking, name: str, config: PipelineConfig | None = None) -> Run:
    """The run that is meant by an id, the beginning of one or of its training's, a name, an alias, or models:/….

    Args:
        config: whose model's aliases are meant; by default the usual one's.

    Raises:
        UserError: there is none, or several.
    """
    from mlflow.exceptions import MlflowException

    version = named_version(name, tracking, config)
    if version is not None:
        return client.get_run(str(version.run_id))
    try:
        return client.get_run(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise

    def is_meant(run: Run) -> bool:
        training = run.data.tags.get(TRAINING_TAG, "").rstrip("/").rpartition("/")[2]
        return run.info.run_name == name or run.info.run_id.startswith(name) or training.startswith(name)

    experiment = tracking.experiment_id(client)
    runs = [run for run in client.search_runs([experiment], max_results=_LOOKED_THROUGH) if is_meant(run)]
    if len(runs) == 1:
        return runs[0]
    if not runs:
        hint = f"see the runs of the experiment {tracking.experiment}"
        raise UserError("no run has that name or id, and no version that alias", where=name, hint=hint)
    ids = ", ".join(run.info.run_id[:8] for run in runs[:4])
    raise UserError(f"{len(runs)} runs are called that", where=name, hint=f"give one's id: {ids}")


def _table(run: Run) -> pa.Table | None:
    """What each document cost in the run's evaluation; None where it is not there any more."""
    place = run.data.tags.get(EVALUATION_TAG)
    if not place:
        return None
    try:
        return read_documents(place)
    except UserError as error:  # one that is damaged keeps nobody from comparing the others
        log.warning("compare: the evaluation of %s cannot be read: %s", run.info.run_name, error)
        return None


def _against(first: pa.Table | None, second: pa.Table | None) -> Comparison | None:
    """Of two evaluations on the same documents; per byte where their tokens are others; None for other documents."""
    if first is None or second is None or first["document"] != second["document"]:
        return None
    before, now = (table["nats"].to_numpy() for table in (first, second))
    others, tokens = (table["tokens"].to_numpy() for table in (first, second))
    if np.array_equal(tokens, others):
        return compare(before, now, tokens)
    units = second["bytes"].to_numpy()
    if not np.array_equal(units, first["bytes"].to_numpy()):
        return None  # parts of documents, and not the same parts
    return replace(compare(before, now, units), unit="byte", units_per_token=float(units.sum() / tokens.sum()))


def facts_of(run: Run, against: Comparison | None) -> dict[str, str]:
    """The rows of one run, in their order."""
    metrics, tags = run.data.metrics, run.data.tags

    def number(key: str, shown: Callable[[float], str]) -> str:
        return shown(metrics[key]) if key in metrics else _NONE

    loss = number(DECIDING, lambda value: f"{value:.4f}")
    if "cross_entropy/standard_error" in metrics:
        loss += f" ± {metrics['cross_entropy/standard_error']:.4f}"
    seconds = metrics.get("train/active_seconds", 0.0)
    speed = f"{metrics['train/tokens'] / seconds:,.0f}" if seconds and "train/tokens" in metrics else _NONE
    interval = against.interval if against else None
    return {
        "run": run.info.run_id[:8],
        "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        "status": str(run.info.status).lower(),
        "data": _data(run),
        "cross-entropy, nats per token": loss,
        "difference from the first": f"{against.difference:+.4f}" if against else _NONE,
        "its 95 % interval": f"{interval.low:+.4f} to {interval.high:+.4f}" if interval else _NONE,
        "documents won": f"{against.won:.0%}" if against else _NONE,
        "perplexity": number("evaluation/perplexity", lambda value: f"{value:,.1f}"),
        "bits per byte": number("evaluation/bits_per_byte", lambda value: f"{value:.4f}"),
        "samples degenerate": number("samples/degenerate", lambda value: f"{value:.0%}"),
        "tokens": number("train/tokens", lambda value: f"{value:,.0f}"),
        "tokens/s": speed,
        "training": duration(seconds) if seconds else _NONE,
        "device hours": number("train/device_hours", lambda value: f"{value:.3g}"),
        "energy, Wh": number("train/energy_wh", lambda value: f"{value:,.3g}"),
        "FLOPs": number("train/flops", lambda value: f"{value:.3g}"),
        "memory per rank, GB": number("train/memory_mb", lambda value: f"{value / 1e3:.2f}"),
        "device": tags.get("device", _NONE),
        "trigger": tags.get("trigger", _NONE),
        "decision": tags.get("decision", _NONE),
    }


def _data(run: Run) -> str:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    name = inputs[0].dataset.name if inputs else ""
    return f"{name} {run.data.tags.get('gptpipe.dataset', '')[:8]}".strip() or _NONE


def score_again(out: str, cache: TokenCache) -> Score:
    """What scores a run's best checkpoint on the text that another was scored on, as that one was, and keeps it.

    Args:
        out: folder where evaluations are kept.
    """

    def score(first: Run, run: Run) -> Comparison | None:
        one, other = first.data.tags, run.data.tags
        if not all(key in tags for key in (CHECKPOINT_TAG, DATASET_TAG) for tags in (one, other)):
            return None
        chosen = {
            key.removeprefix("evaluate."): value
            for key, value in first.data.params.items()
            if key.removeprefix("evaluate.") in _SCORED_BY
        }
        config = EvaluateConfig.model_validate(chosen)
        fixed = first.data.params.get("evaluate.data", "None")
        data = one[DATASET_TAG] if fixed == "None" else fixed
        # the text is in the first's tokens, and the other may have another tokenizer
        evaluation = evaluate_against(
            one[CHECKPOINT_TAG], other[CHECKPOINT_TAG], data=data, config=config, out=out, cache=cache
        )
        return evaluation.against.comparison.reversed if evaluation.against else None

    return score


def curves(tracking: Tracking, compared: SideBySide) -> Mapping[str, Mapping[str, list[tuple[int, float]]]]:
    """The losses of each run by tokens, `train/loss` and `validation/loss`, by the run's id."""
    with tracking.reached() as client:
        return {column.run_id: losses_of(client, column.run_id) for column in compared.columns}


def losses_of(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """`train/loss` and `validation/loss` of a run in nats per token, as (tokens, loss)."""
    tokens = {each.step: int(each.value) for each in client.get_metric_history(run_id, "train/tokens")}
    return {
        key: [(tokens[each.step], each.value) for each in client.get_metric_history(run_id, key) if each.step in tokens]
        for key in ("train/loss", "validation/loss")
    }
