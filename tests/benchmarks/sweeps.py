"""Successive halving against the whole grid: 27 small trainings each way, the steps they take and the best loss.

    python tests/benchmarks/sweeps.py [--steps 270] [--seeds 1] [--train-seed 1337] [--reduction 2] [--rungs 3]
                                         [--parallel 1] [--values 3]

Every training is a real one, on Python's standard library; neither way finds what the other has trained, for each has
a store and a database of its own. The grid is trained once, halving with each seed: the seed draws its order.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from gptpipe.config import DataConfig, PipelineConfig, SweepConfig, parse
from gptpipe.config.settings import prepare_environment, reload_settings
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.pipeline.sweep import Places, sweep
from gptpipe.progress import show_on_console
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import SweepResult, plain_table
from gptpipe.tracking.client import Tracking

SEARCH = {
    "train.learning_rate": ("3e-4", "1.5e-3", "6e-3"),
    "model.n_embd": ("32", "64", "128"),
    "train.beta2": ("0.9", "0.95", "0.99"),
}
TOLERANCE = 0.01  # nats per token


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=270)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train-seed", type=int, default=1337)
    parser.add_argument("--reduction", type=int, default=2)
    parser.add_argument("--rungs", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--values", type=int, default=3, help="of each key; 3 are 27 trainings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptpipe-sweeps-") as name:
        os.environ["GPTPIPE_HOME"] = name
        reload_settings()
        prepare_environment()
        show_on_console("WARNING")
        data = tokenize(DataConfig(corpus=["stdlib:"]), f"{name}/datasets").dataset
        grid, seconds = made(options, Path(name), data, "grid", 0)
        print("\n".join(plain_table(grid)))
        steps = sum(row.steps for row in grid.rows)
        assert grid.best is not None
        print(f"grid: {len(grid.rows)} trainings, {steps:,} steps, {seconds:.0f} s, best {grid.best.loss:.4f}")
        losses = {str(row.parameters): row.loss for row in grid.rows}
        for seed in range(options.seeds):
            halving, seconds = made(options, Path(name), data, "asha", seed)
            best, taken = halving.best, sum(row.steps for row in halving.rows)
            assert best is not None
            assert best.loss is not None
            assert grid.best.loss is not None
            behind = best.loss - grid.best.loss
            verdict = "yes" if behind <= TOLERANCE and taken <= 0.4 * steps else "no"
            print(
                f"asha, seed {seed}: {taken:,} steps, {taken / steps:.1%} of the grid's, {seconds:.0f} s; best "
                f"{best.loss:.4f}, {behind:+.4f} (the grid's own for it: {losses[str(best.parameters)]:.4f}); "
                f"within {TOLERANCE} nats by 40 % of the steps: {verdict}",
                flush=True,
            )


def made(options: argparse.Namespace, folder: Path, data: str, method: str, seed: int) -> tuple[SweepResult, float]:
    """A sweep in a store of its own, and the seconds it took."""
    values = {
        "model": {"context_length": 64, "n_layer": 2, "n_head": 2},
        "train": {
            "steps": options.steps,
            "seed": options.train_seed,
            "batch_size": 8,
            "warmup_steps": max(1, options.steps // 20),
            "validate_every": 0,
            "validate_tokens": 16384,
            "checkpoint_every": 0,
        },
    }
    base: PipelineConfig = parse(PipelineConfig, values)
    search = [f"{key}={','.join(some[: options.values])}" for key, some in SEARCH.items()]
    settings = SweepConfig(
        search=search,
        method=method,
        seed=seed,
        reduction=options.reduction,
        rungs=options.rungs,
        parallel=options.parallel,
    )
    place = folder / f"{method}-{seed}"
    place.mkdir()
    tracking = Tracking(
        f"sqlite:///{place}/mlflow.db", "sweeps", str(place / "mlflow"), "http://127.0.0.1:5000", None, str(place)
    )
    places = Places(data, "", str(place), f"sqlite:///{place}/sweeps.db", tracking, TokenCache())
    began = time.perf_counter()
    result, _ = sweep(Plan.of(base, settings), places)
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
