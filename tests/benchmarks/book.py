"""The lecture's training of book-124m on The Verdict, by this engine: losses beside those the lecture logs.

Usage: python tests/benchmarks/book.py [--text ../shared/data/the-verdict.txt] [--seeds 123 124 125]

Preset book-124m as it is: batch 2, 90 steps, AdamW at 4e-4 with decay 0.1 on everything, float32. Scored without
dropout on 5 batches' worth of training tokens and on all validation tokens, after the steps the lecture names (its
step 0 is the state after the first update). Order of samples and dropout masks differ, nothing else may.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

TRAINING = {0: 9.781, 5: 8.111, 10: 6.661, 20: 5.726, 50: 2.427, 85: 0.391}
VALIDATION = 6.13
EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "the-verdict.txt"
    parser.add_argument("--text", type=Path, default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125])
    options = parser.parse_args()
    curves, best = [], []
    for seed in options.seeds:
        began = time.perf_counter()
        training, validation = run(options.text, seed)
        curves.append(training)
        best.append(min(validation.values()))
        said = "  ".join(f"{step}: {training[step]:.3f}" for step in TRAINING)
        print(f"seed {seed}: {said}  best validation {best[-1]:.3f}  ({time.perf_counter() - began:.0f} s)", flush=True)
    print(f"mean of {counted(len(curves))}, the lecture, the difference:")
    for step, theirs in TRAINING.items():
        ours = statistics.fmean(curve[step] for curve in curves)
        print(f"step {step:3}: {ours:6.3f} {theirs:6.3f} {ours - theirs:+.3f}")
    print(f"best validation: {statistics.fmean(best):.3f} {VALIDATION:.2f} {statistics.fmean(best) - VALIDATION:+.3f}")


def counted(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def run(text: Path, seed: int) -> tuple[dict[int, float], dict[int, float]]:
    """Training and validation losses after the steps the lecture evaluates at."""
    import torch

    from gptpipe.config import DataConfig, PipelineConfig
    from gptpipe.corpus.build import tokenize
    from gptpipe.dataset.cache import TokenCache
    from gptpipe.dataset.dataset import open_dataset
    from gptpipe.dataset.loader import TrainLoader, evaluation_batches
    from gptpipe.dataset.stream import TokenStream
    from gptpipe.model.gpt import GPT
    from gptpipe.model.memory import keep_freed_memory
    from gptpipe.model.precision import Precision
    from gptpipe.train.distributed import Ranks
    from gptpipe.train.optimizer import make_optimizers
    from gptpipe.train.state import TrainState
    from gptpipe.train.step import Stepper

    keep_freed_memory()
    preset = PipelineConfig(preset="book-124m")
    config = preset.train.model_copy(update={"seed": seed})
    context = preset.model.context_length
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(tokenize(DataConfig(corpus=[str(text)]), folder).dataset)  # type: ignore[list-item]
        cache = TokenCache(Path(folder), 10**12)
        streams = {split: TokenStream(dataset, split, cache) for split in ("train", "validation")}
        torch.manual_seed(seed)
        model = GPT(preset.model)
        alone = Ranks(0, 0, 1, 1, torch.device("cpu"))
        state = TrainState(micro_batch=config.batch_size)
        optimizers = make_optimizers(model, config)
        stepper = Stepper(model, model, optimizers, config, alone, Precision(config.precision, "cpu"), state)
        loader = TrainLoader(streams["train"], context_length=context, config=config)

        @torch.no_grad()
        def score(split: str) -> float:
            limit = 5 * config.batch_size * context if split == "train" else 0
            model.eval()
            nats = tokens = 0.0
            for inputs, targets in evaluation_batches(streams[split], context, config.batch_size, limit):
                nats += float(model(inputs, targets))
                tokens += targets.numel()
            model.train()
            return nats / tokens

        losses: dict[str, dict[int, float]] = {"train": {}, "validation": {}}
        for step in range(config.steps):
            stepper.take(loader.next_batch())
            if step % EVERY == 0:
                losses["validation"][step] = score("validation")
                if step in TRAINING:
                    losses["train"][step] = score("train")
        loader.close()
    return losses["train"], losses["validation"]


if __name__ == "__main__":
    main()
