"""`gptpipe`, the command. Exit codes: 0 done, 2 what was given is wrong, 75 stopped resumable, 1 anything else."""

from __future__ import annotations

import codecs
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import psutil
import typer

from gptpipe.cli.terminal import drop_unwritten, show_what_it_can
from gptpipe.config import PRESETS, PipelineConfig, load_config, preset_summary, preset_values
from gptpipe.config.form import corpus_of
from gptpipe.config.settings import make_home, prepare_environment, reload_settings, settings
from gptpipe.errors import EXIT_FAILED, EXIT_RESUMABLE, EXIT_USER_ERROR, Preempted, UserError
from gptpipe.extras import install_hint
from gptpipe.progress import show_on_console
from gptpipe.version import __version__
from gptpipe.wording import counted, figure

# the base of what a wrong command line raises; typer carries its own click and exports only the leaves
UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

log = logging.getLogger(__name__)

_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Raw text in, an evaluated and registered GPT out, again every night.",
)


def _named(value: str | None) -> str | None:
    """An empty name would be the current folder, or nothing at all."""
    if value is not None and not value.strip():
        raise UserError("an empty name", where="where to write", hint="give a file, folder or URL")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, logs on stderr.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with any of the configuration's keys.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One value, e.g. train.steps=200; may be given several times."),
]
Preset = Annotated[str | None, typer.Option(help=f"Settings to start from: {', '.join(PRESETS)}.")]
Corpora = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        metavar="URL",
        help="Text to train on: file, folder, glob, s3:// or stdlib:; NAME=URL gives it a name.",
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights", help="Checkpoint or its parent, Hugging Face folder, .safetensors, .pth, or models:/NAME@ALIAS."
    ),
]


def main() -> None:
    """The console script's entry."""
    wants_json = "--json" in sys.argv
    code = EXIT_FAILED
    show_what_it_can()
    try:
        _check_folder()
        prepare_environment()
        show_on_console(settings().log_level)
        code = app(standalone_mode=False) or 0
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except UserError as error:
        code = EXIT_USER_ERROR
        _fail(error.as_dict(), str(error), wants_json)
    except UsageError as error:
        code = EXIT_USER_ERROR
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(code)
        message = error.format_message().rstrip(".").replace("\n", " ")
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "gptpipe"
        hint = f"see `{where} --help`"
        if "unexpected extra argument" in message:
            hint = "write --set before every key=value" if "=" in message else "write the option before every value"
        elif where == "gptpipe" and "such option: --" in message:
            hint = "options come after the command: gptpipe COMMAND --json"
        _fail({"message": message, "where": where, "hint": hint}, f"{where}: {message} — {hint}", wants_json)
    except Preempted as stopped:
        code = EXIT_RESUMABLE
        _fail(
            {"message": str(stopped), "where": "train", "hint": "run the same command again"},
            str(stopped),
            wants_json,
        )
    except (typer.Abort, KeyboardInterrupt):
        hint = "run the same command again: what is done is not done again"
        _fail({"message": "stopped", "where": "", "hint": hint}, f"stopped — {hint}", wants_json)
        _leave_at_once(EXIT_RESUMABLE)
    except BaseException as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error  # typer leaves when nobody reads on
        if isinstance(cause, BrokenPipeError):
            drop_unwritten()
        elif type(error).__name__ in ("Cancelled", "CancelledRun", "TerminationSignal"):
            _fail(
                {"message": str(error), "where": "train", "hint": "run again to go on"},
                str(error),
                wants_json,
            )
            _leave_at_once(code)
        else:
            details = getattr(error, "details", "") or traceback.format_exc()
            sys.stderr.write(f"{details.rstrip()}\n")
            _fail(
                {"message": f"{type(error).__name__}: {error}", "where": "", "hint": ""},
                f"failed: {error}",
                wants_json,
            )
    drop_unwritten()
    sys.exit(code)


def _check_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"cannot be used ({error.strerror})", where="the current folder", hint="change to one that is there"
        ) from None


def _leave_at_once(code: int) -> NoReturn:
    """End without Prefect's farewells: its in-process server takes up to ten seconds to stop by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(error: dict[str, str], line: str, wants_json: bool) -> None:
    if wants_json:
        print(json.dumps({"error": error}))
    sys.stderr.write(f"error: {line}\n" if error["message"] != line else f"{line}\n")


def _answer(values: dict[str, Any], wants_json: bool, text: str) -> None:
    try:
        print(json.dumps(values) if wants_json else text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where="standard output", hint="write it to another disk"
        ) from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"gptpipe {__version__}")
        raise typer.Exit()


def _configure(
    config: Path | None,
    overrides: list[str] | None,
    preset: str | None = None,
    corpora: list[str] | None = None,
    **given: Any,
) -> PipelineConfig:
    if corpora:
        given["data"] = {"corpus": [_corpus(text) for text in corpora]}
    return load_config(preset=preset, file=config, overrides=overrides, **given)


def _corpus(text: str) -> dict[str, str]:
    return {"url": text} if Path(text).exists() else corpus_of(text)


def _use_storage(url: str | None) -> None:
    if url:
        os.environ["GPTPIPE_STORAGE"] = url
        reload_settings()


@app.command()
def run(
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    corpus: Corpora = None,
    storage: Annotated[str | None, typer.Option(help="Folder or s3:// URL for everything that is made.")] = None,
    init: Annotated[str | None, typer.Option(metavar="WEIGHTS", help="Weights to start from: fine-tuning.")] = None,
    export: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write the finished model there, as transformers reads it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again even if this training is finished.")] = False,
    as_json: Json = False,
) -> None:
    """The whole pipeline in place: tokenize, train, evaluate, sample, register, promote or keep."""
    _use_storage(storage)
    parameters = _configure(config, overrides, preset, corpus, init=init, export=export)
    if force:
        parameters = parameters.model_copy(update={"force": True})
    result = _run_flow(parameters)
    _answer(result, as_json, _summary(parameters, result))


def _run_flow(parameters: PipelineConfig) -> dict[str, Any]:
    """`retrain` in this process, with a Prefect server of its own beside it unless PREFECT_API_URL names one."""
    make_home()
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    from gptpipe.pipeline.checks import check_pipeline
    from gptpipe.services.prefect_server import PrefectServer

    server = None if os.environ.get("PREFECT_API_URL") else PrefectServer()  # it starts while this process gets ready
    try:
        check_pipeline(parameters)
    except BaseException:
        if server:
            server.stop()
        raise
    from httpx import HTTPError
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY
    from prefect.settings.context import temporary_settings

    from flows.retrain import RetrainParameters, retrain

    show_on_console(settings().log_level)
    # each flow waits up to a second for its heartbeat's thread to end; nobody watches this process for zombies
    changes: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    if server:
        changes[PREFECT_API_URL] = server.url
        server.wait()
    with temporary_settings(updates=changes):
        try:
            result: Any = retrain(RetrainParameters(**parameters.model_dump(mode="json")))
        except HTTPError as error:
            if server is None or server.starts == 1:
                raise
            log.debug("the flow could not reach its server", exc_info=error)
            raise Preempted("Prefect's server in this command went away; what is done is not done again") from None
    return dict(result)


def _summary(parameters: PipelineConfig, result: dict[str, Any]) -> str:
    """What was made, how good it is, where it is, and how to look at it: a few lines."""
    training, evaluation, samples, model = (result[key] for key in ("training", "evaluation", "samples", "model"))
    speed = f", {training['tokens_per_second']:,.0f} tokens/s" if training["tokens_per_second"] else ""
    is_python = any(c.url.startswith("stdlib:") for c in parameters.data.corpus)
    python = samples["python_lines"] if is_python else None
    there = result["dataset"]["splits"]["train"]
    share = training["tokens"] / there
    part = f"{share:.1%} of" if share < 1 else f"{share:.1f} times"
    kind = f"a {parameters.preset} GPT" if parameters.init == "scratch" else f"a GPT from {parameters.init}"
    first = samples["samples"][0]
    lines = [
        "",
        f"made      {kind}, {training['steps']:,} steps over {training['tokens']:,} tokens, {part} the {there:,} there "
        f"are{speed}",
        f"good      {evaluation['sentence']}",
        f"          {evaluation['bits_per_byte']:.3f} bits a byte"
        + (f"; {python:.0%} of its lines are Python's" if python is not None else ""),
        *([_change(evaluation["against"])] if "against" in evaluation else []),
        f"says      {first['text'][:100]!r}",
        f"is at     {training['best_checkpoint']}",
    ]
    if model:
        lines += [
            f"is        {model['uri']}, {'now' if model['champion'] else 'not'} {parameters.promote.alias} "
            f"({model['decision']})",
            f"look at   {_located(model['how_to_open'])}",
            f"compare   {model['compare']}",
        ]
    if result["export"]:
        lines.append(f"exported  {result['export']}, a folder that transformers reads")
    lines.append(
        f"try it    {_command('gptpipe')} generate --weights {shlex.quote(training['best_checkpoint'])} "
        f"--prompt {shlex.quote((samples['samples'][:2][-1] if is_python else first)['prompt'])}"
    )
    return "\n".join(lines)


def _change(before: dict[str, Any]) -> str:
    return f"change    before {before['cross_entropy']:.3f} nats a token; {before['comparison']['sentence']}"


def _command(name: str) -> str:
    """How this environment's `name` is called in a shell: by its path where it is not the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found and Path(found).resolve() == beside.resolve()):
        return name
    path = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return shlex.quote(str(path))


def _located(command: str) -> str:
    return command.replace("mlflow ", f"{_command('mlflow')} ", 1) if command.startswith("mlflow ") else command


@app.command()
def tokenize(
    corpus: Corpora = None,
    out: Annotated[str, typer.Option(callback=_named, help="Folder or URL; the dataset lies in <out>/<id>/.")] = ...,  # type: ignore[assignment]
    tokenizer: Annotated[
        str | None, typer.Option(help="A tiktoken encoding, or a Hugging Face tokenizer's folder.")
    ] = None,
    validation: Annotated[float | None, typer.Option(help="Share of the documents kept for validation.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Corpora to Parquet token shards."""
    if not corpus and config is None and not any((o or "").startswith("data.corpus") for o in overrides or []):
        raise UserError("no corpus", where="--corpus", hint="give a file, folder, glob, s3:// URL, or stdlib:")
    given = {
        "tokenizer": tokenizer,
        "validation": validation,
        "workers": workers,
        "corpus": [_corpus(text) for text in corpus] if corpus else None,
    }
    options = load_config(file=config, overrides=overrides, data={k: v for k, v in given.items() if v is not None}).data
    from gptpipe.corpus.build import tokenize as make_dataset

    result = make_dataset(options, out)
    dropped = ", ".join(f"{count:,} left out: {reason}" for reason, count in result.dropped.items())
    sizes = " + ".join(f"{tokens:,} {split}" for split, tokens in result.splits.items())
    if result.already_done:
        text = f"already done: {result.dataset}"
    else:
        text = (
            f"{counted(result.documents, 'document')}, {counted(result.tokens, 'token')} ({sizes}), "
            f"{counted(result.shards, 'shard')}, "
            f"{result.megabytes_per_second:.1f} MB/s → {result.dataset}"
        )
    _answer(result.as_dict(), as_json, f"{text}\n{dropped}".rstrip())


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(help="Dataset, or the folder of datasets (the one made last).")],
    as_json: Json = False,
) -> None:
    """A dataset at a glance: sizes, lengths, corpora, frequent tokens, excerpts."""
    from gptpipe.dataset.inspect import describe
    from gptpipe.dataset.inspect import inspect as look_at

    found = look_at(dataset)
    _answer(found.as_dict(), as_json, describe(found))


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Dataset, or the folder of datasets (the one made last).")],
    out: Annotated[str, typer.Option(callback=_named, help="Folder or URL; the training lies in <out>/<id>/.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    init: Annotated[str | None, typer.Option(help="WEIGHTS to start from.")] = None,
    nproc: Annotated[int | None, typer.Option(help="Ranks on this machine.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the newest checkpoint.")] = True,
    force: Annotated[bool, typer.Option("--force", help="A new attempt even if this training is finished.")] = False,
    as_json: Json = False,
) -> None:
    """Train on a dataset, followed into MLflow."""
    options = _configure(config, [*(overrides or []), *([f"train.nproc={nproc}"] if nproc is not None else [])], preset)
    if force:
        options = options.model_copy(update={"force": True})
    from gptpipe import storage, tracking
    from gptpipe.weights.adapt import import_weights, starting_from

    start = init or options.init
    checkpoint = ""
    if start != "scratch":
        source = tracking.resolve_weights(start, options)
        context = options.init_context_length
        place = storage.join(storage.normalize(out), "init", _short(source + (f" {context}" if context else "")))
        checkpoint = import_weights(source, place, context_length=context).url
    options = starting_from(options, checkpoint)
    result, link = tracking.train_and_track(options, data=data, out=out, init=checkpoint, resume=resume)
    values = {**result.as_dict(), "run_id": link.run_id if link else None}
    done = "already done: " if result.already_done else ""
    text = f"{done}{result.steps:,} steps, {result.tokens:,} tokens → {result.checkpoint}"
    if result.validation_loss is not None:
        text += f"\nvalidation loss {result.validation_loss:.3f}"
    _answer(values, as_json, text + (f"\nlook at  {_located(link.how_to_open)}" if link else ""))


def _short(text: str) -> str:
    from gptpipe.config import digest
    from gptpipe.storage import normalize

    return digest(normalize(text))[:12]


@app.command()
def evaluate(
    weights: WeightsOption,
    data: Annotated[str | None, typer.Option(help="Dataset whose split is scored.")] = None,
    text: Annotated[str | None, typer.Option(help="Text file, or - for standard input.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Score these on the same documents too, and compare.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens a window; by default the model's context.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next; by default a window: none overlap.")
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Each document on its own after <|endoftext|>, as lm_eval has them.")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:FILE", help="Score lambada:FILE or hellaswag:FILE too; may be given several times."),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(metavar="FILE", callback=_named, help="Write a page that shows the loss in the text, .html."),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Cross-entropy, perplexity and bits per byte over a dataset's split or a text."""
    given = {"context_length": context, "stride": stride, "documents": "apart" if apart else None}
    chosen = [f"evaluate.{key}={value}" for key, value in given.items() if value is not None]
    options = load_config(file=config, overrides=[*(overrides or []), *chosen]).evaluate
    if config is None and not any("evaluate.max_tokens" in o for o in overrides or []):
        options = options.model_copy(update={"max_tokens": 0})
    options = options.model_copy(update={"tasks": [*options.tasks, *(task or [])]})
    content = _read_text(text) if text is not None else None
    if content == "":
        where = "standard input" if text == "-" else str(text)
        raise UserError("there is no text", where=where, hint="give a longer text")
    if page and not page.endswith(".html"):
        raise UserError("not the name of a page", where=f"--page {page}", hint="give one that ends in .html")
    from gptpipe import storage
    from gptpipe.evaluation.evaluate import Against, compare_tallies, evaluate_whole, in_one_window
    from gptpipe.tracking import resolve_weights
    from gptpipe.weights.find import read_weights

    where = storage.normalize(page) if page else ""
    if where:
        storage.check_writable(storage.parent(where))
    own = read_weights(resolve_weights(weights))
    others = read_weights(resolve_weights(against)) if against else None  # wrong ones are named before any are scored
    if others is not None:
        options = in_one_window(options, own, others)
    scored = evaluate_whole(own, data=data, text=content, config=options)
    found = replace(scored.evaluation, page=where)
    columns = [found.numbers]
    size = f"{counted(found.tokens, 'token')}, {counted(found.bytes, 'byte')}"
    notes = [f"scored: {found.scored}, {found.windows}, {found.precision}; {size}"]
    if where:
        storage.write_bytes(where, scored.page().encode())
        notes.append(f"page: {where}")
    if others is not None:
        tally = scored.tally
        del scored  # one model at a time
        other = evaluate_whole(others, data=data, text=content, config=options)
        comparison = compare_tallies(other.tally, tally)
        found = replace(found, against=Against(other.evaluation, comparison))
        columns.append(other.evaluation.numbers)
        notes.append(f"against {other.evaluation.weights}: {comparison.sentence}")
    _answer(found.as_dict(), as_json, "\n".join([found.sentence, "", *_side_by_side(columns), "", *notes]))


def _side_by_side(columns: list[dict[str, Any]]) -> list[str]:
    """Lines of numbers under each other, a column a model."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    width = max(len(name) for name in names)
    heads = [] if len(columns) == 1 else [" " * width + "".join(f"{head:>20}" for head in ("weights", "against"))]

    def cell(column: dict[str, Any], name: str) -> str:
        return figure(column.get(name), "only of a whole" if name in column else "–")

    return [*heads, *(f"{name:<{width}}" + "".join(f"{cell(c, name):>20}" for c in columns) for name in names)]


def _read_text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise UserError(error.strerror or str(error), where=name, hint="give an existing text file, or -") from None
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8", where=name, hint="convert the file to UTF-8") from None


@app.command()
def generate(
    weights: WeightsOption,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Text to continue; may be given several times.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts: a line each, or .jsonl with `prompt`; - is standard input."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(callback=_named, help="File or URL for the samples as JSONL, instead of standard output."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens generated a prompt.")] = 80,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest; 0 is all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest that reach this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least so likely beside the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Over 1, what is there already is less likely.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text before which to end; may be given several times.")
    ] = None,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="With --json or --out: each token's log-probability.")
    ] = False,
    slide: Annotated[str, typer.Option(help="Past the context: `one`, or `half`, which is far quicker.")] = "one",
    batch_size: Annotated[int, typer.Option(help="Prompts continued at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 1337,
    as_json: Json = False,
) -> None:
    """Continue prompts. A single one appears token by token on a terminal."""
    from gptpipe import storage
    from gptpipe.config import SampleConfig, parse
    from gptpipe.generation.generate import generate as continue_prompts
    from gptpipe.pipeline.checks import check_prompts
    from gptpipe.tracking import resolve_weights

    given_prompts = [*({"prompt": text} for text in prompt or []), *(_read_prompts(prompts) if prompts else [])]
    texts = [each["prompt"] for each in given_prompts]
    if not texts:
        raise UserError("no prompt", where=prompts or "--prompt", hint="give --prompt TEXT, or --prompts FILE")
    if logprobs and not (as_json or out):
        raise UserError("text shows no log-probabilities", where="--logprobs", hint="give --json or --out FILE too")
    given = {
        "prompts": texts,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or [],
        "slide": slide,
        "batch_size": batch_size,
        "seed": seed,
    }
    try:
        options = parse(SampleConfig, given)
    except UserError as error:
        flag = f"--{error.where.replace('_', '-')}"
        raise UserError(error.message, where=flag, hint="see `gptpipe generate --help`") from None
    check_prompts(options)
    if out:
        storage.check_writable(storage.parent(storage.normalize(out)))
    streams = len(texts) == 1 and sys.stdout.isatty() and not as_json and not out and not options.stop
    printer = _printer(texts[0]) if streams else None
    made = continue_prompts(resolve_weights(weights), texts, options, logprobs=logprobs, on_token=printer)
    samples = [
        {**beside, **asdict(sample), "continuation": sample.continuation}
        for beside, sample in zip(given_prompts, made, strict=True)
    ]
    if not logprobs:
        samples = [{key: value for key, value in each.items() if key != "logprobs"} for each in samples]
    if streams:
        print()
        return
    if out:
        storage.write_bytes(storage.normalize(out), "".join(f"{json.dumps(s)}\n" for s in samples).encode())
        _answer({"out": out, "count": len(samples)}, as_json, f"{counted(len(samples), 'sample')} → {out}")
        return
    _answer({"samples": samples}, as_json, "\n---\n".join(s.text for s in made))


def _read_prompts(name: str) -> list[dict[str, Any]]:
    """Prompts of a file, each under `prompt`: a line each, or lines of JSON, with what else they hold."""
    text = _read_text(name).removeprefix("\ufeff").replace("\r\n", "\n")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not name.endswith(".jsonl"):
        return [{"prompt": line} for _, line in lines]
    found = []
    for number, line in lines:
        try:
            each = json.loads(line)
        except (ValueError, RecursionError):
            each = None
        if not isinstance(each, dict) or not isinstance(each.get("prompt"), str):
            raise UserError(
                "not an object with a `prompt`", where=f"{name}, line {number}", hint='write {"prompt": "…"}'
            )
        found.append(each)
    return found


def _printer(prompt: str) -> Callable[[int, bytes], None]:
    """Prints a prompt once there is a token after it, and tokens; a character may be spread over several."""
    decoder, said = codecs.getincrementaldecoder("utf-8")("replace"), [prompt]
    return lambda _, piece: print(said.pop() if said else "", decoder.decode(piece), sep="", end="", flush=True)


@app.command(name="import")
def import_(
    weights: Annotated[
        str, typer.Argument(help="Any WEIGHTS: Hugging Face folder or hf:NAME, .safetensors, .pth, checkpoint.")
    ],
    out: Annotated[
        str, typer.Option(callback=_named, help="Folder or URL; the checkpoint lies in <out>/step-<step>/.")
    ],
    context: Annotated[int, typer.Option(min=0, help="Another context: less cuts it, more extends it.")] = 0,
    tokenizer: Annotated[str, typer.Option(help="Another tokenizer, for which embeddings are resized.")] = "",
    as_json: Json = False,
) -> None:
    """Weights of any supported layout to a checkpoint."""
    from gptpipe.tracking import resolve_weights
    from gptpipe.weights.adapt import import_weights

    found = import_weights(resolve_weights(weights), out, context_length=context, tokenizer=tokenizer)
    _answer({"checkpoint": found.url, "step": found.step, "sha256": found.model_sha256}, as_json, found.url)


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="Any WEIGHTS.")],
    out: Annotated[
        str, typer.Option(callback=_named, help="Folder or URL that holds nothing yet; for gguf a file of that ending.")
    ],
    layout: Annotated[
        Literal["hf", "gguf"] | None,
        typer.Option("--format", help="hf for transformers, gguf for llama.cpp; by default as --out is called."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights in it: float32, bfloat16, float16, and q8_0 in gguf.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Weights to what other programs read, tokenizer included: a Hugging Face folder, or a GGUF file."""
    from gptpipe.export.folder import DTYPES, export_hf
    from gptpipe.tracking import resolve_weights

    layout = layout or ("gguf" if out.endswith(".gguf") else "hf")
    if layout == "gguf":
        try:
            from gptpipe.export.gguf import TYPES, export_gguf
        except ImportError:
            raise UserError(
                "the gguf package is not installed", where="--format gguf", hint=install_hint("gguf")
            ) from None
        types, write = list(TYPES), export_gguf
    else:
        types, write = list(DTYPES), export_hf
    if dtype not in types:
        hint = "q8_0 is for --format gguf" if dtype == "q8_0" else "leave it out for float32"
        raise UserError(f"{dtype!r} is not one of {', '.join(types)}", where="--dtype", hint=hint)
    written = write(resolve_weights(weights), out, dtype)
    _answer({"out": written, "format": layout, "dtype": dtype}, as_json, written)


@app.command()
def corpora(as_json: Json = False) -> None:
    """The corpora that are built in."""
    from gptpipe.corpus.sources import BUILT_IN

    rows = [
        {
            "url": url,
            "description": item.description,
            "files": (files := list(item.files())) and len(files),
            "megabytes": round(sum(f.size for f in files) / 1e6, 1),
        }
        for url, item in BUILT_IN.items()
    ]
    text = "\n".join(
        f"{row['url']:10} {row['description']} (here {row['files']:,} files, {row['megabytes']} MB)" for row in rows
    )
    _answer({"corpora": rows}, as_json, text)


@app.command()
def presets(as_json: Json = False) -> None:
    """The presets and what is in them."""
    rows = [{"name": name, "description": preset_summary(name), "values": preset_values(name)} for name in PRESETS]
    text = "\n\n".join(f"{row['name']:11} {row['description']}\n            {_flat(row['values'])}" for row in rows)
    _answer({"presets": rows}, as_json, text)


def _flat(values: Any) -> str:
    return "  ".join(f"{section}.{key}={value}" for section, keys in values.items() for key, value in keys.items())


@app.command()
def up(as_json: Json = False) -> None:
    """Start the local stack: object store, PostgreSQL, Prefect server, MLflow server, a worker; and deploy."""
    from gptpipe.services.stack import POOL, Stack

    names: list[str] = []
    notes: list[str] = []

    def deployed() -> None:
        from flows.deployments import deploy as register

        made = register(POOL)
        names.extend(made.names)
        notes.extend(made.notes)

    stack = Stack()
    stack.up(deployed, lambda line: print(line, file=sys.stderr, flush=True))
    notes += _missing_runs()
    text = (
        f"Prefect   {stack.prefect_url}   start a training there: Deployments, on-demand, Run\n"
        f"MLflow    {stack.mlflow_url}\n"
        f"deployed  {', '.join(names)}\n"
        + "".join(f"note      {note}\n" for note in notes)
        + f"logs      {stack.supervisor.logs}\n"
        f"`{_command('gptpipe')} run` in this folder uses these servers until `{_command('gptpipe')} down`."
    )
    answer = {"prefect": stack.prefect_url, "mlflow": stack.mlflow_url, "deployments": names, "notes": notes}
    _answer(answer, as_json, text)


def _missing_runs() -> list[str]:
    """Notes about scheduled deployments for which the server has planned no run within some seconds."""
    from gptpipe.services.doctor import without_upcoming_run

    until = time.monotonic() + 20  # the server's scheduler looks at new deployments every five seconds
    while (missing := without_upcoming_run()) and time.monotonic() < until:
        time.sleep(0.5)
    return [f"{name} is scheduled, but no run of it is planned: see `gptpipe doctor`" for name in missing]


@app.command()
def down(as_json: Json = False) -> None:
    """Cancel what runs and stop the local stack; all data stays."""
    from gptpipe.services.stack import Stack

    def cancelled() -> None:
        from flows.deployments import cancel_running

        if count := cancel_running():
            print(f"cancelled {counted(count, 'run')}", file=sys.stderr, flush=True)

    stack = Stack()
    ran = stack.down(cancelled)
    text = f"stopped; the data is in {stack.folder}" if ran else "nothing was running"
    _answer({"stopped": ran, "folder": str(stack.folder)}, as_json, text)


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Work pool; gptpipe-nodes is that of trainings on several machines.")] = (
        "gptpipe-nodes"
    ),
    name: Annotated[str | None, typer.Option(help="Name of the worker; by default the machine's.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="A machine without a GPU.")] = False,
) -> None:
    """Work for a Prefect server, by default as a node of trainings on several machines, until SIGTERM."""
    from flows.deployments import deploy_nodes
    from flows.machines.hosts import NODE_POOL
    from flows.machines.worker import command
    from gptpipe.services.worker import check, work

    make_home()
    check(pool, wants_gpu=not cpu, make_pool=deploy_nodes if pool == NODE_POOL else lambda: None)
    # a machine is one node at a time: two trainings would share its devices
    limit = 1 if pool == NODE_POOL else None
    has_health_port = "PREFECT_WORKER_WEBSERVER_PORT" in os.environ
    raise typer.Exit(work(command(pool, name or socket.gethostname(), limit, has_health_port)))


@app.command()
def deploy(
    pool: Annotated[str, typer.Option(help="Work pool whose workers run the flows.")] = "gptpipe", as_json: Json = False
) -> None:
    """Register the deployments with the Prefect server that PREFECT_API_URL names."""
    from gptpipe.services.clients import the_prefect_server

    the_prefect_server().ask("admin/version")
    from flows.deployments import deploy as register

    made = register(pool)
    notes = [*made.notes, *_missing_runs()]
    text = "\n".join([*made.names, *(f"note: {note}" for note in notes)])
    _answer({"deployments": made.names, "notes": notes}, as_json, text)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, and whether storage and tracking answer."""
    from gptpipe.services.doctor import examine

    checks = examine()
    mark: Callable[[bool | None], str] = lambda ok: {True: "ok  ", False: "FAIL", None: "    "}[ok]  # noqa: E731
    text = "\n".join(f"{mark(c.ok)} {c.name:12} {c.detail}" + (f" — {c.hint}" if c.hint else "") for c in checks)
    _answer({"checks": [vars(c) for c in checks]}, as_json, text)
    if any(c.ok is False for c in checks):
        raise typer.Exit(EXIT_FAILED)
