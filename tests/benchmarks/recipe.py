"""What an ingredient of a recipe is worth: trainings that differ in some settings, on the same text, seeds in turn.

    python tests/benchmarks/recipe.py nano "muon: train.optimizer=muon" "qwen3: model.architecture=qwen3" [--seeds 3]

A variant is a preset, or a name and settings on top of one (`name: preset key=value …`, by default --preset); the
first is what the others are compared with. The text is Python's standard library, as in `infra/run.sh`. All are scored
on the same windows of held-out text. Printed are parameters, FLOPs a token, tokens, seconds of training, the loss with
a 95 % interval over seeds, and the difference from the first, seed by seed. Results are kept in --folder: the same
command again runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from gptpipe.config import DataConfig, EvaluateConfig, PipelineConfig, load_config
from gptpipe.config.presets import PRESETS
from gptpipe.corpus.build import tokenize
from gptpipe.evaluation.once import evaluate_once
from gptpipe.launch.training import train
from gptpipe.model.gpt import empty_model

T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}  # Student's t by degrees of freedom


@dataclass
class Variant:
    """Settings under a name, and what came of them by seed: loss in nats per token, and seconds."""

    name: str
    config: PipelineConfig
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, text: str, preset: str) -> Variant:
        if text in PRESETS:
            return cls(text, load_config(preset=text))
        name, _, settings = text.partition(":")
        given = settings.split()
        base = given.pop(0) if given and given[0] in PRESETS else preset
        return cls(name.strip(), load_config(preset=base, overrides=given))

    def run(self, seed: int, data: str, folder: Path, tokens: int) -> None:
        """Train and score, unless that is done."""
        config = self.config.train.model_copy(update={"seed": seed, "validate_every": 0, "checkpoint_every": 0})
        out = str(folder / "trainings")
        result = train(self.config.model, config, data=data, out=out)
        scored = evaluate_once(
            result.best_checkpoint, data=data, config=EvaluateConfig(max_tokens=tokens), out=str(folder / "scores")
        )
        last = json.loads((Path(result.training) / "metrics.jsonl").read_text().splitlines()[-1])
        self.losses.append(scored.cross_entropy)
        self.seconds.append(last["train/active_seconds"])

    def line(self, first: Variant) -> str:
        model, train = empty_model(self.config.model), self.config.train
        tokens = train.steps * train.batch_size * self.config.model.context_length
        said = (
            f"{self.name:32} {model.count_parameters():>11,} {model.flops_per_token() / 1e6:7.1f} MFLOP "
            f"{tokens:>9,} tokens {statistics.median(self.seconds):6.1f} s   {spread(self.losses)}"
        )
        if self is first:
            return said
        pairs = [mine - theirs for mine, theirs in zip(self.losses, first.losses, strict=False)]
        return f"{said}   {spread(pairs, '+')}"


def spread(values: list[float], sign: str = "") -> str:
    """Their mean with a 95 % interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:{sign}.4f}"
    half = T95.get(len(values) - 1, 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{sign}.4f} ± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=262_144, help="of held-out text that all are scored on")
    parser.add_argument("--folder", type=Path, default=Path(".gptpipe/recipe"))
    options = parser.parse_args()
    variants = [Variant.of(text, options.preset) for text in options.variants]
    folder = options.folder.absolute()
    data = tokenize(DataConfig(), str(folder / "datasets")).dataset
    for seed in range(options.seeds):
        for variant in variants:
            variant.run(seed, data, folder, options.tokens)
            print(f"seed {seed}: {variant.line(variants[0])}", flush=True)
    print()
    for variant in variants:
        print(variant.line(variants[0]))


if __name__ == "__main__":
    main()
