"""Evaluation beside a loop over `transformers`' GPT-2 on the same windows: seconds and memory.

Usage: python tests/benchmarks/evaluating.py [--preset gpt2-124m] [--rounds 3] [--windows 8] [--batch 8]
       [--precisions float32 bfloat16]

Random weights of that shape, windows of its context length, two threads. The loop is what `transformers` documents:
the model called with labels, its loss weighted by tokens. Each round runs all in turn, each in a process of its own
that has loaded its model and scored one window before the clock starts. Memory is the peak of resident memory beyond
what the process had before it loaded the model, so the model is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from weights import write

WHO, PRECISIONS = ("ours", "transformers"), ("float32", "bfloat16")
WORKS = tuple(f"{who} {precision}" for precision in PRECISIONS for who in WHO)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2-124m")
    for name, default in (("rounds", 3), ("windows", 8), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--work", choices=WORKS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(measure(options.work, options.folder, options.windows, options.batch)))
        return
    works = [work for work in WORKS if work.split()[1] in options.precisions]
    found: dict[str, list[dict[str, float]]] = {work: [] for work in works}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), options.preset)
        arguments = ["--folder", name, "--windows", str(options.windows), "--batch", str(options.batch)]
        for _ in range(options.rounds):
            for work in works:
                command = [sys.executable, __file__, "--work", work, *arguments]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[work].append(json.loads(done.stdout))
    middle = {
        work: {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        for work, rounds in found.items()
    }
    from gptpipe.config import load_config

    tokens = load_config(preset=options.preset).model.context_length
    sizes = f"{options.windows} windows of {tokens}, {options.batch} at once"
    print(f"{options.preset}, {sizes}, medians of {options.rounds}")
    for work, each in middle.items():
        print(f"{work:22} {each['speed']:8,.0f} tokens/s   {each['memory'] / 1e6:8,.0f} MB   {each['loss']:.6f} nats")
    for precision in options.precisions:
        asked = 1.15 if precision == "float32" else 1.5
        ours, theirs = (middle[f"{who} {precision}"] for who in ("ours", "transformers"))
        print(f"{precision}: {ours['speed'] / theirs['speed']:.2f} of its speed (asked {asked}), "
              f"{ours['memory'] / theirs['memory']:.2f} of its memory (asked 0.3)")  # fmt: skip


def measure(work: str, folder: Path, windows: int, batch: int) -> dict[str, float]:
    import psutil
    import torch
    import transformers  # noqa: F401  (both have both imported)

    who, precision = work.split()
    torch.set_num_threads(2)
    shape = json.loads((folder / "hf" / "config.json").read_text())
    length = shape.get("n_positions") or shape["max_position_embeddings"]
    ids = torch.randint(0, 50257, (windows, length + 1), generator=torch.Generator().manual_seed(1))
    process = psutil.Process()
    before, peak, ended = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    score = ours(folder, precision, batch) if who == "ours" else theirs(folder, precision, batch)
    score(ids[:1])
    began = time.perf_counter()
    loss = score(ids)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    return {"speed": windows * length / seconds, "memory": peak[0] - before, "loss": loss}


def ours(folder: Path, precision: str, batch: int):  # type: ignore[no-untyped-def]
    import numpy as np

    from gptpipe.dataset.windows import evaluation_windows
    from gptpipe.evaluation.documents import Documents, TextTokens
    from gptpipe.evaluation.score import score
    from gptpipe.model.precision import to_precision
    from gptpipe.tokenizer import get_tokenizer
    from gptpipe.weights.find import read_weights

    model = to_precision(read_weights(str(folder / "hf")).build(), precision)

    def run(ids):  # type: ignore[no-untyped-def]
        """Windows one after the other, the last token of each left out as an input."""
        stream = ids.flatten().numpy()
        nothing = np.zeros(1, dtype=np.int64)
        text = Documents.bare(TextTokens(stream), get_tokenizer(), nothing, nothing + len(stream))
        length = ids.shape[1] - 1
        begins = np.array([[i * (length + 1), 0, 0] for i in range(len(ids))])
        windows = evaluation_windows(length + 1, length) + begins
        tally = score(model, text, windows, batch_tokens=batch * length, precision=precision)
        return tally.nats / tally.tokens

    return run


def theirs(folder: Path, precision: str, batch: int):  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=getattr(torch, precision)).eval()

    @torch.no_grad()
    def run(ids):  # type: ignore[no-untyped-def]
        nats = 0.0
        for part in ids.split(batch):
            logits = model(part[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten())
            nats += loss.item() * part[:, 1:].numel()
        return nats / ids[:, 1:].numel()

    return run


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
