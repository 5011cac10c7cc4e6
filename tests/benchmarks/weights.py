"""Weights in: loading beside reading the file, importing beside copying and hashing it, what either holds in memory.

Usage: python tests/benchmarks/weights.py [--preset gpt2-124m] [--rounds 5]

A Hugging Face file of that size is written first and read once, so that all read it from the page cache. Times are the
medians of rounds in turn, each in a process of its own that has imported everything before the clock starts. Memory is
the peak of resident memory beyond what the process had before, in multiples of the file's size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKS = ("read", "load", "transformers", "copy and hash", "import")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2-124m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", choices=WORKS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(measure(options.work, options.folder)))
        return
    if options.folder:
        write(options.folder, options.preset)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--preset", options.preset, "--folder", name], check=True)
        size = (folder / "hf" / "model.safetensors").stat().st_size
        found: dict[str, list[tuple[float, float]]] = {work: [] for work in WORKS}
        for _ in range(options.rounds):
            for work in WORKS:
                command = [sys.executable, __file__, "--work", work, "--folder", name]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[work].append(tuple(json.loads(done.stdout)))
    print(f"{options.preset}, {size / 1e6:,.0f} MB, medians of {options.rounds}")
    seconds = {work: statistics.median(each[0] for each in rounds) for work, rounds in found.items()}
    for work, rounds in found.items():
        memory = statistics.median(each[1] for each in rounds) / size
        print(f"{work:14} {seconds[work]:7.3f} s   {memory:5.2f} x the file in memory")
    print(f"load / read: {seconds['load'] / seconds['read']:.2f} (asked 1.5)")
    print(f"import / copy and hash: {seconds['import'] / seconds['copy and hash']:.2f} (asked 1.3)")


def write(folder: Path, preset: str) -> None:
    """Random weights as transformers would write them."""
    import torch

    from gptpipe.config import load_config
    from gptpipe.model.gpt import GPT
    from gptpipe.weights.commit import model_file
    from gptpipe.weights.huggingface import hf_config, hf_stored
    from gptpipe.weights.tensors import Stored

    config = load_config(preset=preset).model
    (folder / "hf").mkdir()
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in GPT(config).state_dict().items() if "lm_head" not in name}
    tensors = {name: Stored(shape, torch.float32, lambda s=shape: torch.randn(s)) for name, shape in shapes.items()}
    with (folder / "hf" / "model.safetensors").open("wb") as file:
        for block in model_file(hf_stored(config, tensors)):
            file.write(block)
    (folder / "hf" / "config.json").write_text(json.dumps(hf_config(config, "gpt2", 50256)))
    (folder / "hf" / "model.safetensors").read_bytes()


def measure(work: str, folder: Path) -> tuple[float, float]:
    """Seconds, and bytes of resident memory at most beyond those of before."""
    import torch  # noqa: F401

    from gptpipe import load
    from gptpipe.weights.adapt import import_weights

    if work == "transformers":
        from transformers import AutoModelForCausalLM
    file, out = folder / "hf" / "model.safetensors", folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    before, began = _peak(), time.perf_counter()
    if work == "read":
        kept = file.read_bytes()
    elif work == "load":
        kept = load(str(file.parent))
    elif work == "transformers":
        kept = AutoModelForCausalLM.from_pretrained(file.parent)
    elif work == "copy and hash":
        kept, state = None, hashlib.sha256()
        out.mkdir()
        with file.open("rb") as source, (out / file.name).open("wb") as target:
            while block := source.read(8 << 20):
                state.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    else:
        kept = import_weights(str(file.parent), str(out))
    seconds = time.perf_counter() - began
    del kept
    return seconds, _peak() - before


def _peak() -> float:
    """The most resident memory so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
