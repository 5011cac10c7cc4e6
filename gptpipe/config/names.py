"""What a run is called: what was chosen, the data and the preset, so that runs side by side tell their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptpipe.config import Corpus, PipelineConfig, field_roles, flatten

OPERATIONAL = frozenset(key for key, role in field_roles(PipelineConfig).items() if role == "operational")
_SHORT = {"learning_rate": "lr", "batch_size": "batch", "context_length": "context", "min_learning_rate": "min_lr"}
_MOST = 4  # of what was chosen
_FIRST = ("init", "train.learning_rate", "train.batch_size", "train.steps")  # what people choose most often
_DOT = " · "


def changes(config: PipelineConfig) -> dict[str, Any]:
    """What decides the result and was chosen otherwise than the preset has it, by dotted key; texts left out. What
    people choose most often comes first.

    What follows from another choice is left out: a warm-up that is shorter since there are fewer steps, and the shape
    of a model that starts from weights.
    """
    usual = flatten(PipelineConfig(preset=config.preset))
    # a short training may leave the usual decay or warm-up no room: they were chosen then
    warmup = usual["train.warmup_steps"] * min(config.train.steps, usual["train.steps"]) // usual["train.steps"]
    usual["train.warmup_steps"] = warmup
    sections = ("train.", "init") if config.init != "scratch" else ("model.", "train.", "init")
    changed = {
        key: value
        for key, value in flatten(config).items()
        if key.startswith(sections) and value != usual.get(key) and key not in OPERATIONAL
    }
    return {key: changed[key] for key in [*_FIRST, *changed] if key in changed}


def chosen(config: PipelineConfig) -> str:
    """The changes in a few words; empty where there is none."""
    words = [word(key, value) for key, value in changes(config).items()]
    more = [f"+{len(words) - _MOST}"] if len(words) > _MOST else []
    return " ".join(words[:_MOST] + more)


def word(key: str, value: Any) -> str:
    """A key and its value, short: `lr=0.004`."""
    leaf = key.rpartition(".")[2] if not key.startswith("train.mixture.") else key.removeprefix("train.")
    if key == "init":
        return f"from {str(value).rstrip('/').rpartition('/')[2] or value}"
    return f"{_SHORT.get(leaf, leaf)}={value:g}" if isinstance(value, float) else f"{_SHORT.get(leaf, leaf)}={value}"


def texts(corpora: Sequence[Corpus]) -> str:
    """The corpora in a few words: their names, or else the last part of their addresses."""
    names = [corpus.name or corpus.url.rstrip("/:").rpartition("/")[2] or corpus.url for corpus in corpora]
    return "+".join(names[:3]) + (f"+{len(names) - 3}" if len(names) > 3 else "")


def pipeline_name(config: PipelineConfig) -> str:
    """Of a retraining, for the person who started it: `nano · lr=0.004 · stdlib`."""
    return _DOT.join(part for part in (config.preset, chosen(config), texts(config.data.corpus)) if part)


def training_name(config: PipelineConfig, data: str, training: str) -> str:
    """Of a training among others: what differs first, and no two alike: `lr=0.004 · stdlib · nano · 3fa2c1`.

    Args:
        data: the texts in a few words.
        training: the training's id.
    """
    return _DOT.join(part for part in (chosen(config) or "as the preset", data, config.preset, training[:6]) if part)
