"""`gptpipe run` and `plan`: the whole pipeline in this process."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptpipe.cli.options import (
    ConfigFile,
    Corpora,
    InitOption,
    Json,
    Overrides,
    Preset,
    StoreOption,
    command_name,
    configure,
    located,
    print_answer,
    tracking,
)
from gptpipe.config import PipelineConfig, preset_reference
from gptpipe.config.names import changes
from gptpipe.config.settings import make_home, reload_settings, settings
from gptpipe.errors import Preempted, UserError, no_space
from gptpipe.progress import show_on_console
from gptpipe.wording import first_line

if TYPE_CHECKING:
    from httpx import HTTPError

    from gptpipe.evaluation.result import Against
    from gptpipe.pipeline.result import PipelineResult, Skipped
    from gptpipe.services.prefect_server import PrefectServer


def use_storage(url: str | None) -> None:
    if url:
        os.environ["GPTPIPE_STORAGE"] = url
        reload_settings()


log = logging.getLogger(__name__)


def run(
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    corpus: Corpora = None,
    storage: StoreOption = None,
    init: InitOption = None,
    export: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write the finished model there, as transformers reads it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again even if this training is finished.")] = False,
    as_json: Json = False,
) -> None:
    """The whole pipeline in place: tokenize, train, evaluate, sample, register, promote or keep."""
    use_storage(storage)
    parameters = configure(config, overrides, preset, corpus, init=init, export=export)
    if force:
        parameters = parameters.model_copy(update={"force": True})
    from gptpipe.pipeline.result import Skipped

    result: PipelineResult | Skipped = in_place(parameters, partial(_retrain, parameters))
    text = f"\n{result.sentence}" if isinstance(result, Skipped) else summary(parameters, result)
    print_answer(result.as_dict(), as_json, text)


def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    corpus: Corpora = None,
    storage: StoreOption = None,
    init: InitOption = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Train for five seconds where no run tells the speed.")
    ] = True,
    as_json: Json = False,
) -> None:
    """What a run will come to, before anything is spent: text, steps, FLOPs, memory, time, storage, advice."""
    use_storage(storage)
    parameters = configure(config, overrides, preset, corpus, init=init)
    from gptpipe.pipeline.checks import check_pipeline
    from gptpipe.pipeline.plan import plan as make_plan

    check_pipeline(parameters, settings().storage_url, tracking())
    planned = make_plan(parameters, settings().storage_url, tracking(), measure=measure)
    print_answer(planned.as_dict(), as_json, planned.text)


def _retrain(parameters: PipelineConfig) -> Any:
    from flows.retrain import RetrainParameters, retrain

    return retrain(RetrainParameters(**parameters.model_dump(mode="json")))


def in_place(parameters: PipelineConfig, call: Callable[[], Any]) -> Any:
    """A flow in this process, with a Prefect server of its own beside it unless PREFECT_API_URL names one.

    Args:
        parameters: what is checked before anything starts.
        call: imports the flow and runs it; called once the environment is ready.
    """
    make_home(settings().home_path)
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    from gptpipe.pipeline.checks import check_pipeline
    from gptpipe.services.prefect_server import PrefectServer
    from gptpipe.services.server_apis import the_prefect_server

    server = None
    if os.environ.get("PREFECT_API_URL"):
        the_prefect_server().check()
    else:
        server = PrefectServer()  # it starts while this process gets ready
    try:
        check_pipeline(parameters, settings().storage_url, tracking())
    except BaseException:
        if server:
            server.stop()
        raise
    from httpx import HTTPError
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY
    from prefect.settings.context import temporary_settings

    from flows import begin
    from flows.server.endings import end_what_was_killed

    begin()
    show_on_console(settings().log_level)
    logging.raiseExceptions = settings().log_level == "DEBUG"  # lines for a page that cannot be sent
    # each flow waits up to a second for its heartbeat's thread to end; nobody watches this process for zombies
    changes: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    if server:
        changes[PREFECT_API_URL] = server.url
        server.wait()
    with temporary_settings(updates=changes):
        # a PREFECT_HOME of a person's own holds other runs than ours
        if server and server.alone_since and Path(os.environ["PREFECT_HOME"]) == settings().home_path / "prefect":
            end_what_was_killed(server.alone_since)
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            if not _is_from(server.url if server else os.environ["PREFECT_API_URL"], error):
                raise
            log.debug("the flow could not reach its server", exc_info=error)
            raise _without_server(error, server) from None


def _is_from(url: str, error: HTTPError | RuntimeError) -> bool:
    """Whether an error came of a request to this server: others ask theirs by the same library."""
    if isinstance(error, RuntimeError):  # what a new client of Prefect's makes of it
        return "Failed to reach API" in str(error)
    try:
        return str(error.request.url).startswith(url)
    except RuntimeError:  # it tells of no request
        return True


def _without_server(error: Exception, server: PrefectServer | None) -> Exception:
    """Why a flow ended that could not tell Prefect's server how it is.

    Args:
        server: this command's own; None where PREFECT_API_URL names one.
    """
    if server is None:
        hint, name = "see `gptpipe doctor`, then run it again: what is done is not done again", "PREFECT_API_URL"
        return UserError(f"Prefect's server failed: {first_line(error)}", where=os.environ[name], hint=hint)
    from gptpipe.services.prefect_server import has_no_space

    if has_no_space(settings().home_path):
        return no_space(str(settings().home_path))
    how = "went away" if server.starts > 1 else f"failed ({first_line(error)})"
    return Preempted(f"Prefect's server in this command {how}; what is done is not done again")


def summary(parameters: PipelineConfig, result: PipelineResult) -> str:
    """What was made, how good it is, where it is, and how to look at it: a few lines."""
    from gptpipe.pipeline.result import NOT_REGISTERED

    training, evaluation, samples, model = result.training, result.evaluation, result.best_samples, result.model
    speed = f", {training.tokens_per_second:,.0f} tokens/s" if training.tokens_per_second else ""
    is_python = any(c.url.startswith("stdlib:") for c in parameters.data.corpus)
    python = samples.python_lines if is_python else None
    there = result.dataset.splits["train"]
    share = training.tokens / there
    part = f"{share:.1%} of" if share < 1 else f"{share:.1f} times"
    # the first of all nights that go on from the champion has none to go on from
    kind = f"a GPT from {parameters.init}" if evaluation.against else f"a {parameters.preset} GPT"
    first, reference = samples.samples[0], preset_reference(parameters.preset)
    lines = [
        "",
        f"made      {kind}, {training.steps:,} steps over {training.tokens:,} tokens, {part} the {there:,} there "
        f"are{speed}",
        f"good      {evaluation.sentence}",
        f"          {evaluation.bits_per_byte:.3f} bits per byte"
        + (f"; {python:.0%} of its lines are Python's" if python is not None else ""),
        *([_change(evaluation.against)] if evaluation.against else []),
        *([f"against   {reference}"] if is_python and reference and not changes(parameters) else []),
        f"says      {first.text[:100]!r}",
        f"is at     {training.best_checkpoint}",
    ]
    if model and result.run:
        lines += [
            f"is        {model.uri}, {'now' if model.decision.promote else 'not'} {parameters.promote.alias} "
            f"({model.decision.reason})",
            f"look at   {located(result.run.how_to_open)}",
            f"compare   {result.run.compare_url}",
            f"report    {command_name('gptpipe')} report {result.run.run_id[:8]} --html report.html",
        ]
    if result.waits_for_mlflow:
        lines.append(f"is        {NOT_REGISTERED}")
    if result.export:
        lines.append(f"exported  {result.export}, a folder that transformers reads")
    lines.append(
        f"try it    {command_name('gptpipe')} generate --weights {shlex.quote(training.best_checkpoint)} "
        f"--prompt {shlex.quote((samples.samples[:2][-1] if is_python else first).prompt)}"
    )
    return "\n".join(lines)


def _change(before: Against) -> str:
    return f"change    before {before.evaluation.cross_entropy:.3f} nats per token; {before.comparison.sentence}"
