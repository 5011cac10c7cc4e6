"""Training steps of ours against transformers' GPT-2 or Qwen3 with F.cross_entropy, in turn, each in its own process.

Usage: python tests/benchmarks/step.py [--layers 4] [--width 256] [--batch 8] [--context 256] [--threads 2]
           [--precision float32 bfloat16] [--seconds 20] [--rounds 3] [--device cpu] [--compile]
           [--architecture gpt2]
       python tests/benchmarks/step.py ranks    two ranks of a thread each against one rank with two
       python tests/benchmarks/step.py profile  where our step's time goes

Both sides do the same work: forward, loss, backward, fused AdamW on random tokens. Printed are the medians over rounds
of tokens/s (of the median step), of the process's peak memory, MFU of the matrix products' rate measured beside it
(on a GPU of its data sheet's), and the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = ("transformers", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("against", "ranks", "profile"), default="against")
    for name, default in (("layers", 4), ("width", 256), ("batch", 8), ("context", 256), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--architecture", choices=("gpt2", "qwen3"), default="gpt2")
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options, options.precision[0])))
    elif options.what == "ranks":
        ranks(options)
    elif options.what == "profile":
        for precision in options.precision:
            profile(options, precision)
    else:
        against(options)


def against(options: argparse.Namespace) -> None:
    for precision in options.precision:
        found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.rounds):
            for variant in VARIANTS:
                command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, "--precision", precision]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[variant].append(json.loads(done.splitlines()[-1]))
        middle = {
            variant: {key: statistics.median(one[key] for one in results) for key in results[0]}
            for variant, results in found.items()
        }
        base = middle["transformers"]
        for variant, numbers in middle.items():
            print(
                f"{precision:9} {variant:13} {numbers['tokens_per_second']:9,.0f} tokens/s "
                f"{numbers['tokens_per_second'] / base['tokens_per_second']:5.2f} x   {numbers['peak_mb']:7,.0f} MB "
                f"{numbers['peak_mb'] / base['peak_mb']:5.2f} x   MFU {numbers['mfu']:.3f}",
                flush=True,
            )


def set_up(options: argparse.Namespace, precision: str) -> tuple[Any, Any, Any, Any]:
    """(a function that takes a step, our model for its FLOPs, the device, targets a step)."""
    import torch
    from torch.nn import functional as F

    from gptpipe import GPT, ModelConfig
    from gptpipe.model.memory import keep_freed_memory

    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    else:
        torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    shape = {"n_layer": options.layers, "n_embd": options.width, "n_head": max(1, options.width // 64)}
    tokens = torch.randint(0, 50257, (options.batch, options.context + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    config = ModelConfig(architecture=options.architecture, context_length=options.context, **shape)
    with torch.device("meta"):
        ours = GPT(config)
    model: Any
    if options.variant == "transformers":
        from transformers import AutoConfig, AutoModelForCausalLM

        from gptpipe.weights.huggingface import hf_config

        theirs = hf_config(config, "gpt2", 50256)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**theirs)).to(device)
        run = torch.compile(model) if options.compile else model
    else:
        keep_freed_memory()
        model = GPT(config).to(device)
        run = model
        if options.compile:
            for block in model.h:
                block.compile(dynamic=False)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            if options.variant == "transformers":
                loss = F.cross_entropy(run(inputs).logits.flatten(0, 1), targets.flatten())
            else:
                loss = run(inputs, targets) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, ours, device, targets.numel()


def measure(options: argparse.Namespace, precision: str) -> dict[str, float]:
    import torch

    from gptpipe.train.flops import peak_flops

    step, ours, device, tokens = set_up(options, precision)
    for _ in range(3 if options.compile else 1):
        step()
    seconds: list[float] = []
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until or len(seconds) < 3:
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    speed = tokens / statistics.median(seconds)
    rate = peak_flops(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return {"tokens_per_second": speed, "peak_mb": peak, "mfu": speed * ours.flops_per_token() / rate}


def profile(options: argparse.Namespace, precision: str) -> None:
    from torch.profiler import profile as torch_profile

    options.variant = "ours"
    step, *_ = set_up(options, precision)
    for _ in range(3):
        step()
    with torch_profile() as found:
        for _ in range(3):
            step()
    print(precision)
    by = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=22, max_name_column_width=40))


def ranks(options: argparse.Namespace) -> None:
    """The whole trainer on a real dataset: one rank with two threads and two ranks with one, in turn."""
    from gptpipe.config import DataConfig, ModelConfig, TrainConfig
    from gptpipe.corpus.build import tokenize
    from gptpipe.launch.training import train

    shape = {"n_layer": options.layers, "n_embd": options.width, "n_head": max(1, options.width // 64)}
    model = ModelConfig(context_length=options.context, **shape)
    with tempfile.TemporaryDirectory() as folder:
        data = tokenize(DataConfig(), f"{folder}/data").dataset
        for precision in options.precision:
            speeds: dict[int, list[float]] = {1: [], 2: []}
            for turn in range(options.rounds):
                for nproc, found in speeds.items():
                    config = TrainConfig(
                        steps=32, warmup_steps=1, batch_size=options.batch, nproc=nproc, threads=2 // nproc,
                        precision=precision, log_every=10, validate_every=0, checkpoint_every=0, validate_tokens=256,
                    )  # fmt: skip
                    out = f"{folder}/{precision}-{turn}-{nproc}"
                    made = train(model, config, data=data, out=out)
                    lines = map(json.loads, (Path(made.training) / "metrics.jsonl").read_text().splitlines())
                    # in the first ten steps memory is taken for the first time
                    found += [line["train/tokens_per_second"] for line in lines if line["step"] in (20, 30)]
            one, two = (statistics.median(found) for found in speeds.values())
            print(f"{precision}: one rank x two threads {one:,.0f}, two x one {two:,.0f} tokens/s: {two / one:.3f} x")


if __name__ == "__main__":
    main()
