"""retrain: the whole pipeline. (import weights) → tokenize → train → evaluate → sample → register → promote or keep."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.states import Completed

from flows.evaluate import EvaluateOptions, EvaluateParameters, evaluate
from flows.import_weights import ImportParameters, import_weights
from flows.sample import SampleParameters, sample
from flows.server import endings, report
from flows.server.names import named
from flows.tokenize import TokenizeParameters, tokenize
from flows.train import TrainParameters, train
from gptpipe import storage
from gptpipe.config import PipelineConfig, parse
from gptpipe.config.form import FormSection, pipeline_form, values_of
from gptpipe.config.names import pipeline_name
from gptpipe.config.settings import settings
from gptpipe.errors import Preempted
from gptpipe.evaluation.result import Evaluation
from gptpipe.export.folder import export_hf
from gptpipe.generation.generate import Samples
from gptpipe.launch.training import TrainResult
from gptpipe.pipeline.checks import check_pipeline
from gptpipe.tracking.client import RunLink
from gptpipe.tracking.registry import register, resolve_weights
from gptpipe.tracking.results import describe, log_results
from gptpipe.weights.find import read_weights

log = logging.getLogger("gptpipe.flows")


if TYPE_CHECKING:
    RetrainParameters = FormSection
else:
    RetrainParameters = pipeline_form("RetrainParameters")


def _config(parameters: RetrainParameters) -> PipelineConfig:
    config: PipelineConfig = parse(PipelineConfig, values_of(parameters))
    return config


@flow(
    name="retrain",
    flow_run_name=named(lambda given: pipeline_name(_config(given))),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def retrain(parameters: RetrainParameters) -> Any:
    """Real text in, a trained, evaluated, registered GPT out. A stage done before is not done again."""
    try:
        endings.refuse_after_crashes()
        result = _stages(_config(parameters))
        return Completed(message=_message(result), data=result)
    except CancelledRun as stopped:
        return endings.cancelled(stopped)
    except (Preempted, TerminationSignal) as stopped:
        endings.go_on_later(stopped)


def _message(result: dict[str, Any]) -> str:
    """What the run's page says first: whether anything was to do, how good the model is, and what became of it."""
    dataset, training, model = result["dataset"], result["training"], result["model"]
    done = f"{training['steps']:,} steps"
    if dataset["already_done"] and training["already_done"]:
        done = "nothing is new: the texts and the settings are those of a training that is done"
    verdict = f"; {model['name']} version {model['version']}: {model['decision']}" if model else ""
    return f"{done}; cross-entropy {result['evaluation']['cross_entropy']:.3f} nats per token{verdict}"


def _stages(config: PipelineConfig) -> dict[str, Any]:
    check_pipeline(config)
    init, data = "", config.data
    if config.init != "scratch":
        weights = resolve_weights(config.init, config)
        init = import_weights(
            ImportParameters(weights=weights, context_length=config.init_context_length, tokenizer=data.tokenizer)
        )
        data = data.model_copy(update={"tokenizer": data.tokenizer or read_weights(init).tokenizer})
    dataset = tokenize(TokenizeParameters(data=data))
    training = train(TrainParameters(data=dataset["dataset"], config=config, init=init))
    evaluation = evaluate(
        EvaluateParameters(
            weights=training["best_checkpoint"],
            data=config.evaluate.data or dataset["dataset"],
            against=init,
            config=EvaluateOptions(**config.evaluate.model_dump(exclude={"data"})),
        )
    )
    samples = sample(SampleParameters(weights=training["best_checkpoint"], config=config.sample, every=True))
    registered = publish(config, training, evaluation, samples) if training["run_id"] else None
    exported = ""
    if config.export:
        scores = Evaluation.of(evaluation)
        exported = export_hf(training["best_checkpoint"], config.export, replace=True, scores=scores)
        log.info("export: %s, a folder that transformers reads", exported)
    return {
        "dataset": dataset,
        "training": training,
        "evaluation": evaluation,
        "samples": samples,
        "model": registered,
        "export": exported,
    }


@task(name="register and promote", cache_policy=NO_CACHE, persist_result=False)
def publish(
    config: PipelineConfig, training: dict[str, Any], evaluation: dict[str, Any], samples: dict[str, Any]
) -> dict[str, Any] | None:
    """Log the results to the training's MLflow run, register the model, and move the alias if it is better."""
    link = RunLink(training["run_id"], training["experiment_id"])
    result = TrainResult(**{k: v for k, v in training.items() if k not in ("run_id", "experiment_id")})
    scored = Evaluation.of(evaluation)
    made = [Samples.of(each) for each in samples["through"]]
    picture = log_results(link, result, scored, made)
    registered, where = None, ""
    if config.promote.register_model:
        out = storage.join(settings().storage_url, "evaluations")
        registered = register(config, link, result, scored, out=out)
        alias = config.promote.alias
        verdict = f"now {alias}" if registered.decision.promote else f"the {alias} stays"
        log.info("register: %s, %s: %s", registered.uri, verdict, registered.decision.reason)
        where = f"[Model {registered.name}, version {registered.version}, in MLflow]({registered.url}): "
        where += f"`{registered.uri}`, {verdict}\n\n"
    best = next(each for each in made if each.weights == result.best_checkpoint)
    text = where + describe(config, link, result, scored, best, registered)
    report.page("retrain", text, picture, description="The result, with links to the run and the model")
    if registered is None:
        return None
    return {
        "name": registered.name,
        "version": registered.version,
        "uri": registered.uri,
        "how_to_open": link.how_to_open,
        "compare": link.compare_url,
        "champion": registered.decision.promote,
        "decision": registered.decision.reason,
    }
