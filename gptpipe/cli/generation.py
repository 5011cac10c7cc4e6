"""`gptpipe generate`: prompts continued."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from gptpipe.cli.model_options import NOTHING, model_of, model_options
from gptpipe.cli.options import Json, WeightsOption, named, print_answer, read_text, tracking
from gptpipe.config import SampleConfig
from gptpipe.errors import UserError
from gptpipe.wording import counted, visible


@model_options(
    SampleConfig,
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "stop",
    "slide",
    "precision",
    "batch_size",
    "seed",
)
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
    chosen: Mapping[str, Any] = NOTHING,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="With --json or --out: each token's log-probability.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Continue prompts. A single one appears token by token on a terminal."""
    from gptpipe import storage
    from gptpipe.generation.generate import generate as continue_prompts
    from gptpipe.pipeline.checks import check_prompts
    from gptpipe.tracking.registry import resolve_weights

    given_prompts = [*({"prompt": text} for text in prompt or []), *(_read_prompts(prompts) if prompts else [])]
    texts = [each["prompt"] for each in given_prompts]
    if not texts:
        raise UserError("no prompt", where=prompts or "--prompt", hint="give --prompt TEXT, or --prompts FILE")
    if logprobs and not (as_json or out):
        raise UserError("text shows no log-probabilities", where="--logprobs", hint="give --json or --out FILE too")
    options = model_of(SampleConfig, {**chosen, "prompts": texts}, "generate")
    check_prompts(options)
    if out:
        storage.check_writable(storage.parent(storage.normalize(out)))
    streams = len(texts) == 1 and sys.stdout.isatty() and not as_json and not out and not options.stop
    printer = _printer(texts[0]) if streams else None
    made = continue_prompts(resolve_weights(weights, tracking()), texts, options, logprobs=logprobs, on_token=printer)
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
    prompts = []
    for number, line in lines:
        try:
            each = json.loads(line)
        except (ValueError, RecursionError):
            each = None
        if not isinstance(each, dict) or not isinstance(each.get("prompt"), str):
            raise UserError(
                "not an object with a `prompt`", where=f"{name}, line {number}", hint='write {"prompt": "…"}'
            )
        prompts.append(each)
    return prompts


def _printer(prompt: str) -> Callable[[int, bytes], None]:
    """Prints a prompt once there is a token after it, and tokens; a character may be spread over several."""
    decoder, said = codecs.getincrementaldecoder("utf-8")("replace"), [prompt]

    def show(_: int, piece: bytes) -> None:
        print(visible((said.pop() if said else "") + decoder.decode(piece)), end="", flush=True)

    return show
