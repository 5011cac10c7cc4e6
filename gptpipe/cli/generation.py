"""`gptpipe generate`: prompts continued."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from gptpipe.cli.options import Json, WeightsOption, named, print_answer, read_text
from gptpipe.errors import UserError
from gptpipe.wording import counted


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
        typer.Option(callback=named, help="File or URL for the samples as JSONL, instead of standard output."),
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
    from gptpipe.tracking.registry import resolve_weights

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
        print_answer({"out": out, "count": len(samples)}, as_json, f"{counted(len(samples), 'sample')} → {out}")
        return
    print_answer({"samples": samples}, as_json, "\n---\n".join(s.text for s in made))


def _read_prompts(name: str) -> list[dict[str, Any]]:
    """Prompts of a file, each under `prompt`: a line each, or lines of JSON, with what else they hold."""
    text = read_text(name).removeprefix("\ufeff").replace("\r\n", "\n")
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
