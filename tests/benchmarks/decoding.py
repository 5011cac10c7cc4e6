"""Generation beside its bare matrix products and beside `transformers.generate`: milliseconds per token.

Usage: python tests/benchmarks/decoding.py [--preset gpt2-124m] [--rounds 3] [--new 128] [--prompts 1 16] [--cuda]

Random weights of that shape, two threads, prompts of 16 tokens, the likeliest token each time. The bare products are
those of one step, each matrix once with a row per prompt and attention's two over as many tokens as there are in the
middle, in the same process as what they are compared with, in the quickest layout that was found; printed beside them
are the matrices alone, and these as torch lays them out. Rounds run in turn, each work in a process of its own.

With --cuda on the GPU: beside transformers there is the floor, the time in which as many bytes as the matrices have are
read, at the rate at which a large tensor is copied.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weights import write

WHO, PRECISIONS = ("ours", "transformers"), ("float32", "bfloat16")
ASKED = {("float32", 1): 1.10, ("float32", 16): 1.3, ("bfloat16", 1): 1.3, ("bfloat16", 16): 1.3}
_PROMPT = 16
Works = dict[str, Callable[..., Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2-124m")
    for name, default in (("rounds", 3), ("new", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--work", choices=WHO)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.work:
        work = {"ours": on_gpu if options.cuda else ours, "transformers": theirs}[options.work]
        device = "cuda" if options.cuda else "cpu"
        measured = measure(work, options.folder, options.precisions[0], options.prompts[0], options.new, device)
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), options.preset)
        print(f"{options.preset}, {options.new} new tokens, medians of {options.rounds}, ms per step")
        for precision in options.precisions:
            for prompts in options.prompts:
                report(precision, prompts, options, name)


def report(precision: str, prompts: int, options: argparse.Namespace, folder: str) -> None:
    found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
    more = ["--precisions", precision, "--prompts", str(prompts), "--new", str(options.new), "--folder", folder]
    more += ["--cuda"] * options.cuda
    for _ in range(options.rounds):
        for who in WHO:
            command = [sys.executable, __file__, "--work", who, *more]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[who].append(json.loads(done.stdout))
    theirs = statistics.median(each["step"] for each in found["transformers"])
    if options.cuda:
        step, floor = (statistics.median(each[key] for each in found["ours"]) for key in ("step", "floor"))
        print(
            f"{precision:8} {prompts:3} prompts: ours {step:7.3f}, floor {floor:7.3f}, transformers {theirs:7.3f}; "
            f"{theirs / step:.2f} x transformers' speed (asked 2 for one prompt)",
            flush=True,
        )
        return
    step, bare, matrices, plain = (
        statistics.median(each[key] for each in found["ours"]) for key in ("step", "bare", "matrices", "plain")
    )
    ratio = statistics.median(each["step"] / each["bare"] for each in found["ours"])
    print(
        f"{precision:8} {prompts:3} prompts: ours {step:7.2f}, bare products {bare:7.2f} (without attention's "
        f"{matrices:.2f}, as torch lays them out {plain:.2f}), transformers {theirs:7.2f}; {ratio:.2f} x the products "
        f"(asked {ASKED.get((precision, prompts), 1.3)}), {theirs / step:.2f} x transformers' speed",
        flush=True,
    )


def measure(
    work: Callable[..., Works],
    folder: Path,
    precision: str,
    prompts: int,
    new: int,
    device: str,
) -> dict[str, float]:
    import torch

    torch.set_num_threads(2)
    ids = torch.randint(0, 50257, (prompts, _PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    found: dict[str, float] = {}
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.inference_mode():
        works = work(folder, precision, ids, new, device)
        run = works.pop("run")
        run(8 + new)  # of every shape once: a GPU's graphs are captured
        # the prompt's share is taken off: the same with fewer tokens
        seconds = {}
        for count in (8, 8 + new):
            began = time.perf_counter()
            run(count)
            seconds[count] = time.perf_counter() - began
        found["step"] = 1000 * (seconds[8 + new] - seconds[8]) / new
        for name, each in works.items():
            each()
            wait()
            began = time.perf_counter()
            for _ in range(32):
                each()
            wait()
            found[name] = 1000 * (time.perf_counter() - began) / 32
    return found


def ours(folder: Path, precision: str, ids: list[list[int]], new: int, _device: str) -> Works:
    import torch
    from torch.nn import functional as F

    from gptpipe.config import SampleConfig
    from gptpipe.generation.cpu import PackedDecoder
    from gptpipe.generation.generate import generate_ids
    from gptpipe.model.precision import to_precision
    from gptpipe.weights.find import read_weights

    model = to_precision(read_weights(str(folder / "hf")).build(), precision).eval()
    plain = [layer.weight.detach() for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    made = PackedDecoder(model, new + 8, consume=False)
    packed = [
        layer._weight for block in made._blocks for layer in (block.c_attn, block.c_proj, block.c_fc, block.c_out)
    ]
    packed.append(made._head._weight)  # the very matrices that the decoder reads
    # one row is not quicker than two
    inputs = [torch.randn(max(2, len(ids)), weight.shape[1], dtype=weight.dtype) for weight in plain]

    def run(count: int) -> None:
        config = SampleConfig(prompts=["a"], max_new_tokens=count, temperature=0)
        found = generate_ids(model, ids, config, decoder=made)
        assert all(len(row) == count for row in found)

    def bare() -> None:
        for weight, x in zip(packed, inputs, strict=True):
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    def as_torch_does() -> None:
        for weight, x in zip(plain, inputs, strict=True):
            F.linear(x[: len(ids)], weight)

    config, length = model.config, _PROMPT + 8 + new // 2  # the mean over the steps
    size = config.n_embd // config.n_head
    shape = (config.n_layer, len(ids) * config.n_head, length, size)
    kind = plain[0].dtype
    keys, values = torch.randn(shape).to(kind), torch.randn(shape).to(kind)
    query, shares = torch.randn(shape[1], 1, size).to(kind), torch.randn(shape[1], 1, length).to(kind)

    def with_attention() -> None:
        """Layer by layer, as they come in a step."""
        for layer in range(config.n_layer):
            for weight, x in list(zip(packed, inputs, strict=True))[4 * layer : 4 * layer + 4]:
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            torch.bmm(query, keys[layer].transpose(1, 2))
            torch.bmm(shares, values[layer])
        torch.ops.mkldnn._linear_pointwise(inputs[-1], packed[-1], None, "none", [], "")

    return {"run": run, "matrices": bare, "bare": with_attention, "plain": as_torch_does}


def on_gpu(folder: Path, precision: str, ids: list[list[int]], new: int, device: str) -> Works:
    import torch

    from gptpipe.config import SampleConfig
    from gptpipe.generation.generate import generate_ids
    from gptpipe.generation.gpu import GraphedDecoder
    from gptpipe.model.precision import to_precision
    from gptpipe.weights.find import read_weights

    model = to_precision(read_weights(str(folder / "hf")).build(), precision).to(device).eval()
    made = GraphedDecoder(model, new + 8)
    size = sum(each.weight.nbytes for each in model.modules() if isinstance(each, torch.nn.Linear))
    source = torch.empty(max(1, size // 2), dtype=torch.uint8, device=device)  # read once and written once
    target = torch.empty_like(source)

    def run(count: int) -> None:
        config = SampleConfig(prompts=["a"], max_new_tokens=count, temperature=0)
        assert all(len(row) == count for row in generate_ids(model, ids, config, decoder=made))

    return {"run": run, "floor": lambda: target.copy_(source)}


def theirs(folder: Path, precision: str, ids: list[list[int]], new: int, device: str) -> Works:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=getattr(torch, precision)).to(device).eval()
    tokens = torch.tensor(ids, device=device)

    def run(count: int) -> None:
        made = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=50256,
        )
        assert made.shape[1] == tokens.shape[1] + count

    return {"run": run}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
