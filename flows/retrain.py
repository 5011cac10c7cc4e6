"""retrain: the whole pipeline. (import weights) → tokenize → train → evaluate → sample → register → promote or keep."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.states import Completed

from flows.evaluate import EvaluateOptions, EvaluateParameters, evaluate
from flows.import_weights import ImportParameters, import_weights
from flows.sample import SampleParameters, sample
from flows.server import endings, report
from flows.server.approval import Approval, ask
from flows.server.names import named
from flows.tokenize import TokenizeParameters, tokenize
from flows.train import TrainParameters, train
from gptpipe import storage
from gptpipe.config import PipelineConfig, parse
from gptpipe.config.form import FormSection, pipeline_form, values_of
from gptpipe.config.names import pipeline_name
from gptpipe.config.settings import settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import Preempted, UserError
from gptpipe.export.folder import export_hf
from gptpipe.pipeline.checks import check_pipeline
from gptpipe.pipeline.news import Since, check_nature, since
from gptpipe.pipeline.overlap import check_overlap
from gptpipe.pipeline.plan import plan
from gptpipe.pipeline.result import PipelineResult, Skipped
from gptpipe.tracking.aliases import ChampionChanged, answer, settled
from gptpipe.tracking.announcement import announce
from gptpipe.tracking.client import RunLink, Tracking
from gptpipe.tracking.promote import ALREADY
from gptpipe.tracking.registry import Champion, Registered, champion, register, starting_weights
from gptpipe.tracking.report import REPORT_PAGE, Night, has_report, log_night, log_report, report_of, stored_bytes
from gptpipe.tracking.report_page import report_page
from gptpipe.tracking.results import describe, log_results
from gptpipe.weights.checkpoint import CONFIG
from gptpipe.weights.find import read_weights
from gptpipe.wording import cell

log = logging.getLogger("gptpipe.flows")


if TYPE_CHECKING:
    RetrainParameters = FormSection
else:
    RetrainParameters = pipeline_form("RetrainParameters")


def config_of(parameters: RetrainParameters) -> PipelineConfig:
    """What the form's values say."""
    config: PipelineConfig = parse(PipelineConfig, values_of(parameters))
    return config


@flow(
    name="retrain",
    flow_run_name=named(lambda given: pipeline_name(config_of(given))),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def retrain(parameters: RetrainParameters) -> Any:
    """Real text in, a trained, evaluated, registered GPT out. A stage done before is not done again."""
    try:
        if reason := endings.missed():
            return Completed(message=reason, name="Missed")
        result = run_pipeline(config_of(parameters))
        name = "Skipped" if result.is_skipped else None
        return Completed(message=result.sentence, name=name, data=result)
    except CancelledRun as stopped:
        return endings.cancelled(stopped)
    except (Preempted, TerminationSignal) as stopped:
        endings.go_on_later(stopped)


def run_pipeline(config: PipelineConfig) -> PipelineResult | Skipped:
    """Every stage, each a flow of its own within this one, and what they came to."""
    here = settings()
    tracking, init, data, earlier, news = Tracking.of(here), "", config.data, "", None
    check_pipeline(config, here.storage_url, tracking)
    what_it_will_take(config, here.storage_url, tracking)
    before = champion(config, tracking) if config.init == "champion" else None
    if weights := before.checkpoint if before else starting_weights(config, tracking):
        init = import_weights(
            ImportParameters(weights=weights, context_length=config.init_context_length, tokenizer=data.tokenizer)
        )
        data = data.model_copy(update={"tokenizer": data.tokenizer or read_weights(init).tokenizer})
    elif config.init == "champion":
        log.info("retrain: %s has no %s yet: from scratch", config.promote.model_name, config.promote.alias)
        config = config.model_copy(update={"init": "scratch"})
    dataset = tokenize(TokenizeParameters(data=data))
    if before and before.dataset and (news := what_is_new(config, before.dataset, dataset.dataset)):
        if not news.news.documents:
            finish(config, tracking, before)
            return Skipped(dataset, news.sentence)
        check_nature(news)
        earlier = news.earlier.url
    if config.evaluate.data:
        what_is_scored(config, dataset.dataset)
    training, run = train(TrainParameters(data=dataset.dataset, config=config, init=init, since=earlier))
    evaluation = evaluate(
        EvaluateParameters(
            weights=training.best_checkpoint,
            data=config.evaluate.data or dataset.dataset,
            against=init,
            config=EvaluateOptions(**config.evaluate.model_dump(exclude={"data"})),
        )
    )
    samples = sample(SampleParameters(weights=training.best_checkpoint, config=config.sample, every=True))
    waits = run is None and config.promote.register_model
    result = PipelineResult(dataset, training, run, evaluation, samples, waits_for_mlflow=waits)
    if run:
        picture = log_results(run, training, evaluation, samples)
        registered = register_and_compare(config, run, result, news) if config.promote.register_model else None
        result = replace(result, model=registered)
        result = replace(result, is_news=publish(config, run, result, news, picture))
        if registered and registered.waits:
            result = replace(result, model=settle(config, run, result, news, registered), is_news=True)
            publish(config, run, result, news, picture)
    if config.export:
        result = replace(result, is_news=result.is_news or not storage.list_files(config.export))
        place = export_hf(training.best_checkpoint, config.export, replace=True, scores=evaluation)
        log.info("export: %s, a folder that transformers reads", place)
        result = replace(result, export=place)
    return result


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def what_it_will_take(config: PipelineConfig, store: str, tracking: Tracking) -> None:
    """The plan as a page in Prefect, and its advice as log lines."""
    try:
        planned = plan(config, store, tracking, measure=False)
    except UserError as error:  # whoever needs what is wrong will say so
        log.warning("plan: %s", error)
        return
    for line in planned.advice:
        log.info("plan: %s", line)
    report.page("plan", planned.markdown, description="What this retraining will come to")


@task(name="what is new", cache_policy=NO_CACHE, persist_result=False)
def what_is_new(config: PipelineConfig, earlier: str, dataset: str) -> Since | None:
    """What is new since the champion's dataset, and whether it is of the same nature, as a page in Prefect."""
    news = since(earlier, dataset, config.drift, TokenCache(limit=settings().cache_bytes))
    if news is not None:
        log.info("retrain: %s", news.sentence)
        table = f"\n\n{news.drift.table}" if news.drift else ""
        report.page("news", news.sentence + table, description="What is new since the champion's dataset")
    return news


@task(name="what is scored", cache_policy=NO_CACHE, persist_result=False)
def what_is_scored(config: PipelineConfig, dataset: str) -> None:
    """Stop before anything is trained where the model would be scored on text that it is trained on."""
    check_overlap(config.evaluate, dataset, evaluations())


def evaluations() -> str:
    """Where evaluations are kept."""
    return storage.join(settings().storage_url, "evaluations")


def finish(config: PipelineConfig, tracking: Tracking, before: Champion) -> None:
    """Do what is left of the night in which the champion became it, where that was stopped before its end."""
    registered = Registered(tracking, config.promote.model_name, before.version, ALREADY)
    announce(registered, config.promote.alias, partial(report.emit, registered.name), settings().webhook_url)
    if before.run_id and not has_report(tracking, before.run_id):
        log_report(tracking, before.run_id, report_page(report_of(tracking, before.run_id)))
    if config.export and not storage.exists(storage.join(config.export, CONFIG)):  # the last file of an export
        export_hf(before.checkpoint, config.export, replace=True)


@task(name="register and compare", cache_policy=NO_CACHE, persist_result=False)
def register_and_compare(
    config: PipelineConfig, run: RunLink, result: PipelineResult, news: Since | None
) -> Registered:
    """Register the model, and move the alias if it is better.

    Args:
        news: what is new since the champion's dataset, where it is known.
    """
    return register(
        config,
        run,
        result.training,
        result.evaluation,
        result.best_samples,
        new=news.validation if news else None,
        out=evaluations(),
        cache=TokenCache(limit=settings().cache_bytes),
    )


def settle(
    config: PipelineConfig, run: RunLink, result: PipelineResult, news: Since | None, registered: Registered
) -> Registered:
    """Ask a person about a version that waits: settled as is answered here or elsewhere, or as it was."""
    while registered.waits:
        given = ask_a_person(config, registered)
        registered = settled(config.promote, registered)
        if given is None or not registered.waits:
            break
        try:
            number = registered.version
            registered = answer(config.promote, run.tracking, number, agreed=given.agree, note=given.note)
        except ChampionChanged as changed:
            log.warning("approval: %s", changed)
            registered = register_and_compare(config, run, result, news)
    return registered


def ask_a_person(config: PipelineConfig, registered: Registered) -> Approval | None:
    """The answer of a person; None where nobody answers in time, or no server has a page to answer on."""
    if settings().prefect_host:
        return ask(registered, config.promote)
    log.warning("approval: `gptpipe approve %s` makes %s champion", registered.version, registered.uri)
    return None


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(config: PipelineConfig, run: RunLink, result: PipelineResult, news: Since | None, picture: bytes) -> bool:
    """Tell what was decided: to listeners, on the run, on the version, as pages, as a report.

    Args:
        picture: of the losses, a PNG.

    Returns:
        Whether what became of the model was told now, and not at an earlier time.
    """
    registered, where, is_news = result.model, "", False
    if registered:
        alias = config.promote.alias
        is_news = announce(registered, alias, partial(report.emit, registered.name), settings().webhook_url)
        verdict = f"now {alias}" if registered.decision.promote else f"the {alias} stays"
        log.info("register: %s, %s: %s", registered.uri, verdict, registered.decision.reason)
        where = f"[Model {cell(registered.name)}, version {registered.version}, in MLflow]({registered.url}): "
        where += f"{cell(registered.uri)}, {verdict}\n\n"
    text = where + describe(config, run, result.training, result.evaluation, result.best_samples, registered)
    log_night(run, night_of(result, news), already_done=result.training.already_done)
    log_report(run.tracking, run.run_id, report_page(report_of(run.tracking, run.run_id)))
    text += f"\n\n[The report]({run.artifact_url(REPORT_PAGE)})"
    log.info("report: %s of the run, or `gptpipe report %s`", REPORT_PAGE, run.run_id[:8])
    report.page("retrain", text, picture, description="The result, with links to the run and the model")
    return is_news


def night_of(result: PipelineResult, news: Since | None) -> Night:
    """What only the pipeline knows of this retraining, for its report."""
    stages = {
        "tokenize": result.dataset.already_done,
        "train": result.training.already_done,
        "evaluate": result.evaluation.already_done,
        "sample": result.best_samples.already_done,
    }
    return Night(
        news=news.sentence if news else "",
        measures=list(news.drift.measures) if news and news.drift else [],
        skipped=[name for name, already_done in stages.items() if already_done],
        stored=stored_bytes(result.training),
    )
