"""Training steps a second of ours against transformers' GPT-2 with F.cross_entropy, each in a process of its own.

Usage: python tests/benchmarks/step.py [--width 128] [--layers 4] [--batch 8] [--context 128] [--seconds 15]

Both do the same work: forward, loss, backward, fused AdamW, on random tokens. Printed are tokens/s (the median
step), the peak memory of the process, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

VARIANTS = ("transformers", "ours, memory given back", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 128), ("layers", 4), ("batch", 8), ("context", 128), ("seconds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps({p: measure(options, p) for p in ("float32", "bfloat16")}))
        return
    found: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        found[variant] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    base = found["transformers"]
    for precision in ("float32", "bfloat16"):
        for variant, results in found.items():
            speed, memory = results[precision]["tokens_per_second"], results[precision]["peak_mb"]
            ratio = speed / base[precision]["tokens_per_second"]
            share = memory / base[precision]["peak_mb"]
            print(
                f"{precision:9} {variant:24} {speed:8,.0f} tokens/s {ratio:5.2f} x   {memory:6,.0f} MB {share:5.2f} x"
            )


def measure(options: argparse.Namespace, precision: str) -> dict[str, float]:
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    shape = {"n_layer": options.layers, "n_embd": options.width, "n_head": max(1, options.width // 32)}
    tokens = torch.randint(0, 50257, (options.batch, options.context + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    model: Any
    if options.variant == "transformers":
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(
            GPT2Config(n_positions=options.context, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **shape)
        )
    else:
        from gptpipe import GPT, ModelConfig
        from gptpipe.memory import keep_freed_memory

        if options.variant == "ours":
            keep_freed_memory()
        model = GPT(ModelConfig(context_length=options.context, **shape))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds: list[float] = []
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until or len(seconds) < 4:
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            if options.variant == "transformers":
                loss = F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
            else:
                loss = model(inputs, targets) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    # the peak is the process's: the second precision may stand on the first one's
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_second": targets.numel() / statistics.median(seconds[1:]), "peak_mb": peak}


if __name__ == "__main__":
    main()
