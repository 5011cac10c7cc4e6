"""What a finished training is given in MLflow: scores, samples, pictures and a table.

Checkpoints are logged by URL: large files go to object storage directly and never through the tracking server.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from gptpipe import storage
from gptpipe.config import PipelineConfig
from gptpipe.dataset.dataset import open_dataset
from gptpipe.evaluation.result import Evaluation
from gptpipe.generation.degenerate import degenerate_share, fault_of
from gptpipe.generation.generate import Samples, samples_of
from gptpipe.launch.job import METRICS
from gptpipe.launch.metrics import read_line
from gptpipe.launch.training import TrainResult
from gptpipe.tracking.client import RunLink
from gptpipe.tracking.follow import PARAMETERS_TAG
from gptpipe.tracking.plots import loss_curve
from gptpipe.tracking.promote import ALREADY
from gptpipe.tracking.registry import Registered, decision_of
from gptpipe.tracking.summary import training_summary
from gptpipe.wording import counted

log = logging.getLogger(__name__)

EVALUATION_PAGE = "evaluation.html"
# MLflow's charts and tables are in the order of the alphabet, by group: what decides comes first
DECIDING = "cross_entropy/evaluation"
DESCRIPTION = "mlflow.note.content"
EVALUATION_TAG = "gptpipe.evaluation"  # of a run: where its evaluation is kept, without the ending
CHECKPOINT_TAG = "gptpipe.checkpoint"


def read_metrics(training: str) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; those that cannot be read are told, and left out."""
    place = storage.join(training, METRICS)
    try:
        lines = [line for line in storage.read_bytes(place).splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    whole = [values for line in lines if (values := read_line(line)) and "tokens" in values]
    if broken := len(lines) - len(whole):
        log.warning("%s: %s damaged, and left out of the curves", place, counted(broken, "line"))
    return whole


def log_results(
    link: RunLink,
    result: TrainResult,
    evaluation: Evaluation,
    samples: list[Samples],
) -> bytes:
    """Log the evaluation and its page, the samples, the loss picture, where the checkpoint is. Returns the picture.

    The evaluation has no step: MLflow draws a bar a run for such numbers, and points in a void for others.

    Args:
        samples: of each checkpoint, by step; a table each.
    """
    from mlflow.entities import Metric, RunTag

    picture = loss_curve(
        read_metrics(result.training), unigram=evaluation.unigram, title=evaluation.sentence.split(":")[0]
    )
    values = {
        DECIDING: evaluation.cross_entropy,
        "evaluation/perplexity": evaluation.perplexity,
        "evaluation/bits_per_byte": evaluation.bits_per_byte,
        "cross_entropy/unigram": evaluation.unigram,
        "evaluation/accuracy": evaluation.accuracy,
        "evaluation/calibration_error": evaluation.calibration_error,
    }
    if evaluation.word_perplexity is not None:
        values["evaluation/word_perplexity"] = evaluation.word_perplexity
    values |= {f"evaluation/{task.task}": task.accuracy for task in evaluation.tasks}
    if evaluation.interval is not None:
        values["cross_entropy/standard_error"] = evaluation.interval.standard_error
    if (before := evaluation.against) is not None:
        values["evaluation/before/cross_entropy"] = before.evaluation.cross_entropy
        values["evaluation/before/difference"] = before.comparison.difference
        values["evaluation/before/documents_won"] = before.comparison.won
    best = samples_of(result.best_checkpoint, samples)
    if best.python_lines is not None:
        values["samples/python_lines"] = best.python_lines
    if (degenerate := degenerate_share(best.samples)) is not None:
        values["samples/degenerate"] = degenerate
    now = int(time.time() * 1000)
    with link.tracking.reached() as client, storage.passing_folder() as folder:
        run = client.get_run(link.run_id)
        new = {key: value for key, value in values.items() if run.data.metrics.get(key) != value}
        client.log_batch(
            link.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in new.items()],
            tags=[
                RunTag(CHECKPOINT_TAG, result.best_checkpoint),
                RunTag("scored_on", evaluation.scored),
                RunTag(EVALUATION_TAG, evaluation.page.removesuffix(".html")),
            ],
        )
        (folder / "loss.png").write_bytes(picture)
        client.log_artifact(link.run_id, str(folder / "loss.png"))
        if evaluation.page:
            (folder / EVALUATION_PAGE).write_bytes(storage.read_bytes(evaluation.page))
            client.log_artifact(link.run_id, str(folder / EVALUATION_PAGE))
        there = {item.path for item in client.list_artifacts(link.run_id, "samples")}
        for each in samples:
            name = f"samples/step-{each.step:08d}.json"
            if name not in there:  # log_table appends
                table = {
                    "step": [each.step] * len(each.samples),
                    "prompt": [s.prompt for s in each.samples],
                    "continuation": [s.continuation for s in each.samples],
                    "fault": [fault_of(s) for s in each.samples],
                }
                client.log_table(link.run_id, table, name)
    return picture


def describe(
    config: PipelineConfig,
    link: RunLink,
    result: TrainResult,
    evaluation: Evaluation,
    samples: Samples,
    registered: Registered | None,
) -> str:
    """Give the run, and the registered version, a table of what the training came to; returns it as Markdown.

    A version that is the champion already keeps the table that says how it became so.
    """
    decision = registered.decision if registered else None
    links = {
        "run": link.url,
        "the loss in the text, token by token": link.artifact_url(EVALUATION_PAGE),
        "all runs side by side": link.compare_url,
    }
    with link.tracking.reached() as client:
        tags = client.get_run(link.run_id).data.tags
        if registered and decision == ALREADY:
            if DESCRIPTION in tags:
                return str(tags[DESCRIPTION])
            # it was stopped between the decision and this: what was decided stands on the version
            decision = decision_of(client.get_model_version(registered.name, registered.version))
        text = training_summary(
            config,
            open_dataset(result.dataset),
            result,
            evaluation,
            samples,
            read_metrics(result.training),
            decision,
            parameters=int(tags[PARAMETERS_TAG]),
            links=links,
        )
        client.set_tag(link.run_id, DESCRIPTION, text)
        if registered and decision:
            client.set_tag(link.run_id, "decision", decision.reason)
            client.update_model_version(registered.name, registered.version, text)
    return text
