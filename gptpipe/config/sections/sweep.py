"""Many trainings that differ in a few keys, and how they are searched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from gptpipe.config.fields import Section, operational, result
from gptpipe.config.sections.pipeline import PipelineConfig


class SweepConfig(Section):
    """Which keys a sweep searches, how, and how many trainings it makes."""

    search: list[str] = result(
        [],
        "What is searched, one KEY=VALUES for each key: a range such as train.learning_rate=1e-4..1e-2 (log scale "
        "where it spans a factor of ten; :log or :linear at its end says which), or a list such as model.n_embd=64,128",
    )
    method: Literal["grid", "random", "tpe", "asha"] = result(
        "asha",
        "grid is every combination of lists; random draws; tpe draws where earlier trainings were good; asha draws, "
        "and lets only those go on whose loss is among the best at the same step (successive halving)",
    )
    trials: int = operational(
        0,
        "Trainings at most; 0 is every combination of lists with grid, random and asha, otherwise 20",
        "trainings",
        ge=0,
        le=100_000,
    )
    parallel: int = operational(
        0, "Trainings at once; 0 is as many as there are GPUs for, and 1 on a CPU", "trainings", ge=0, le=1024
    )
    reduction: int = result(2, "asha: one of this many trainings goes on at each rung", ge=2, le=100)
    rungs: int = result(
        3,
        "asha: how often trainings are judged before they end, the first time after train.steps / reduction ** rungs",
        ge=1,
        le=10,
    )
    seed: int = result(1337, "Seed of what is drawn", ge=0, lt=1 << 31)
    name: str = operational(
        "",
        "Name of the sweep: the same name goes on; empty is made of the settings, so that the same command goes on",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$",
    )

    @field_validator("search", mode="before")
    @classmethod
    def _lines_of_a_mapping(cls, value: Any) -> Any:
        """In a file the keys may be those of a mapping, and their values lists."""
        return [f"{key}={values}" for key, values in _leaves(value)] if isinstance(value, dict) else value


class SweepPipeline(PipelineConfig):
    """A file for a sweep: what all its trainings have in common, and beside it the section `sweep`."""

    sweep: SweepConfig = Field(default_factory=SweepConfig, description="What is searched, and how")

    def parts(self) -> tuple[PipelineConfig, SweepConfig]:
        """The pipeline without the section, and the section."""
        return PipelineConfig.model_validate(self.model_dump(exclude={"sweep"})), self.sweep


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ",".join(map(_written, value)) if isinstance(value, list) else _written(value)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
