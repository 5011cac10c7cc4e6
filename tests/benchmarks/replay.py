"""Going on from a model with what is new, against training afresh on everything: loss on new and on old text.

    python tests/benchmarks/replay.py [--steps 440] [--share 0.35] [--replay 0.25 0.5 0.75] [--seeds 1]

Python's standard library without a tenth of it, whole packages, is the earlier text; that tenth is new. A model is
trained on the earlier text, and from there on with a share of the steps; another is trained afresh on all of it. Both
are scored on the held-out documents of either part.
"""

from __future__ import annotations

import argparse
import shutil
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gptpipe.config import DataConfig, EvaluateConfig, load_config
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.news import news_since
from gptpipe.evaluation.once import evaluate_once
from gptpipe.launch.training import train

NEW = ("asyncio", "http", "xml")  # about a tenth


def copy_library(place: Path, *, everything: bool) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        inside = file.relative_to(library)
        if {"site-packages", "test", "tests", "idlelib", "encodings", "lib2to3", "pydoc_data"} & set(inside.parts):
            continue
        if not everything and inside.parts[0] in NEW:
            continue
        (place / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / inside)


def losses(weights: str, data: str, new: frozenset[str], out: str) -> tuple[float, float]:
    """Nats per token on new and on old documents."""
    evaluate_once(weights, data=data, config=EvaluateConfig(max_tokens=300_000), out=out)
    (kept,) = Path(out).glob("*.parquet")
    table = pq.read_table(kept)
    is_new = np.array([name in new for name in table["document"].to_pylist()])
    nats, tokens = table["nats"].to_numpy(), table["tokens"].to_numpy()
    return (nats[is_new].sum() / tokens[is_new].sum()), (nats[~is_new].sum() / tokens[~is_new].sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=440)
    parser.add_argument("--share", type=float, default=0.35)
    parser.add_argument("--replay", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = []
        for number, everything in enumerate((False, True)):
            place = folder / f"text-{number}"
            copy_library(place, everything=everything)
            config = DataConfig(corpus=[{"url": str(place), "name": "library"}], validation=0.3)
            sets.append(open_dataset(tokenize(config, str(folder / "data")).dataset))
        earlier, now = sets
        news, held_out = news_since(earlier, now, "train"), news_since(earlier, now, "validation")
        print(
            f"{news.tokens:,} of {now.total('tokens', 'train'):,} tokens are new; "
            f"{held_out.tokens:,} of {now.total('tokens', 'validation'):,} held out",
            flush=True,
        )
        for seed in range(options.seeds):
            compare(options, seed, folder, earlier, now, held_out.names)


def compare(
    options: argparse.Namespace, seed: int, folder: Path, earlier: Dataset, now: Dataset, new: frozenset[str]
) -> None:
    """All trainings of one seed, a line each."""
    out = str(folder / f"trainings-{seed}")

    def scored(what: str, steps: int, replay: float | None, data: Dataset, init: str = "", since: str = "") -> str:
        more = [f"train.steps={steps}", f"train.seed={seed}"]
        config = load_config(overrides=more if replay is None else [*more, f"train.replay={replay}"])
        result = train(config.model, config.train, data=data.url, out=out, init=init, since=since)
        fresh, old = losses(result.best_checkpoint, now.url, new, f"{out}/scores-{result.id}")
        print(f"{what:28} {steps:5} steps   new {fresh:.4f}   old {old:.4f}", flush=True)
        return result.best_checkpoint

    first = scored("on the earlier text", options.steps, None, earlier)
    scored("afresh on all of it", options.steps, None, now)
    steps = round(options.steps * options.share)
    scored("on from there, all alike", steps, None, now, init=first)
    for replay in options.replay:
        scored(f"on from there, replay {replay:g}", steps, replay, now, init=first, since=earlier.url)


if __name__ == "__main__":
    main()
