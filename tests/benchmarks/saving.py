"""What checkpoints cost a training: gpt2-124m, 4 x 256 tokens per step, saved every 20 steps to S3 or never.

Before that, what a GB costs in processor time when nothing else runs: this process's, and all others' (the store's).

Usage: python tests/benchmarks/saving.py [--every 20] [--steps 61] [--rounds 1] [--precision bfloat16]

GPTPIPE_STORAGE and the S3 settings name where to. The store's own processor time counts: here it runs beside.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import tempfile

import psutil
import torch

from gptpipe import storage
from gptpipe.config import DataConfig, ModelConfig, TrainConfig
from gptpipe.config.settings import prepare_environment
from gptpipe.corpus.build import tokenize
from gptpipe.launch.training import train
from gptpipe.weights.commit import write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("every", 20), ("steps", 61), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="bfloat16")
    options = parser.parse_args()
    prepare_environment()
    place = f"{os.environ['GPTPIPE_STORAGE']}/{secrets.token_hex(4)}"
    speeds: dict[int, list[float]] = {options.every: [], 10**6: []}
    alone(f"{place}/alone")
    with tempfile.TemporaryDirectory() as folder:
        data = tokenize(DataConfig(), folder).dataset
        for turn in range(options.rounds):
            for every, found in speeds.items():
                config = TrainConfig(
                    steps=options.steps, warmup_steps=1, batch_size=4, precision=options.precision, keep_checkpoints=1,
                    log_every=options.every, checkpoint_every=every, validate_every=0, validate_tokens=256,
                )  # fmt: skip
                made = train(ModelConfig(context_length=256), config, data=data, out=f"{place}/{turn}-{every}")
                content = storage.read_bytes(storage.join(made.training, "metrics.jsonl")).decode()
                lines = [json.loads(line) for line in content.splitlines()]
                # the first save is after the first window, so it is in the second
                later = [line for line in lines if options.every < line["step"] < options.steps]
                found.append(statistics.fmean(line["train/tokens_per_second"] for line in later))
                stall = statistics.fmean(line["train/checkpoint_stall"] for line in later)
                print(f"saved every {every}: {found[-1]:,.1f} tokens/s, {stall:.1%} of it stalled", flush=True)
        storage.remove_tree(place)
    saved, never = (statistics.median(found) for found in speeds.values())
    print(f"saving every {options.every} steps: {saved / never:.3f} x of the speed without")


def alone(place: str) -> None:
    tensors = {f"part{number}": torch.randn(50_000_000) for number in range(5)}  # a GB
    for step in (1, 2):
        before, busy = psutil.Process().cpu_times(), psutil.cpu_times()
        write_checkpoint(place, step, model={}, config={}, optimizer=tensors, state={})
        after, all_ = psutil.Process().cpu_times(), psutil.cpu_times()
        own = after.user + after.system - before.user - before.system
        whole = all_.user + all_.system - busy.user - busy.system
        print(f"a GB: {own:.1f} CPU seconds here, {whole - own:.1f} elsewhere on this machine", flush=True)
    storage.remove_tree(place)


if __name__ == "__main__":
    main()
