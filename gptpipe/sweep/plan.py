"""What a sweep is to do: the trainings' common settings, what is searched and how, and the name that it goes on by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptpipe.config import PipelineConfig, SweepConfig, digest
from gptpipe.errors import UserError
from gptpipe.sweep.space import Dimension, child_config, combination, combinations, read_space, shuffled

_USUAL_TRIALS = 20
_VERSIONS = {"asha": 2}  # changes when the same settings would be searched in another way; otherwise 1


@dataclass(frozen=True)
class Plan:
    """A sweep that can be made.

    Attributes:
        base: what all trainings have in common. space: by key.
        dataset: id of the dataset. init: checkpoint that they start from; both are known once they are there.
    """

    base: PipelineConfig
    sweep: SweepConfig
    space: tuple[Dimension, ...]
    dataset: str = ""
    init: str = ""

    @classmethod
    def of(cls, base: PipelineConfig, sweep: SweepConfig) -> Plan:
        """Hold a sweep against what can be searched.

        Raises:
            UserError: a key, a value or a setting with which there is no sweep; all of it is known before any training.
        """
        plan = cls(base, sweep, read_space(sweep.search, base))
        ranges = [each for each in plan.space if not each.values]
        if sweep.method == "grid" and ranges:
            raise UserError(
                f"a grid has no end in the range {ranges[0].text}",
                where=f"search {ranges[0].key}",
                hint="give a list such as 1e-4,1e-3,1e-2, or another method: random, tpe, asha",
            )
        if sweep.method == "asha" and any(each.key == "train.steps" for each in plan.space):
            raise UserError(
                "asha compares trainings of the same length",
                where="search train.steps",
                hint="leave it out, or take another method: grid, random, tpe",
            )
        if base.train.nodes > 1:
            raise UserError(
                "a training of a sweep is on one machine",
                where=f"train.nodes={base.train.nodes}",
                hint="set train.nodes=1; train.nproc is how many of its GPUs each takes",
            )
        return plan

    def on(self, dataset: str, init: str = "") -> Plan:
        """The same on this dataset, from this checkpoint."""
        return replace(self, dataset=dataset, init=init)

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what is searched and what comes out: a sweep goes on only with the same."""
        searched = {each.key for each in self.space}
        fields = {
            f"{name}.{key}": value
            for name, section in (("model", self.base.model), ("train", self.base.train))
            for key, value in section.result_fields().items()
            if f"{name}.{key}" not in searched
        }
        own = {name: value for name, value in self.sweep.result_fields().items() if name != "search"}
        space = [each.as_dict() for each in self.space]
        return digest(
            {
                "version": _VERSIONS.get(self.sweep.method, 1),
                "base": fields,
                "sweep": own,
                "space": space,
                "dataset": self.dataset,
                "init": self.init,
            }
        )

    @property
    def name(self) -> str:
        """The one that was given, or one made of all that decides."""
        return self.sweep.name or f"{self.sweep.method}-{self.fingerprint[:10]}"

    @property
    def trials(self) -> int:
        """How many trainings there are to be."""
        size, asked = combinations(self.space), self.sweep.trials
        if size is None:
            return asked or _USUAL_TRIALS
        return min(asked or (_USUAL_TRIALS if self.sweep.method == "tpe" else size), size)

    def listed(self, number: int) -> dict[str, Any] | None:
        """The values of the training of that number where they are known beforehand: no combination comes twice."""
        size = combinations(self.space)
        if size is None or self.sweep.method == "tpe":
            return None
        place = number if self.sweep.method == "grid" else shuffled(number, size, self.sweep.seed)
        return combination(self.space, place)

    @property
    def first_rung(self) -> int:
        """The step at which asha judges a training for the first time; 0 with other methods."""
        if self.sweep.method != "asha":
            return 0
        shortest: int = self.sweep.reduction**self.sweep.rungs
        return math.ceil(self.base.train.steps / shortest)

    @property
    def rung_steps(self) -> list[int]:
        """The steps at which asha judges a training; none with other methods."""
        steps = (self.first_rung * self.sweep.reduction**rung for rung in range(self.sweep.rungs))
        return [step for step in steps if 0 < step < self.base.train.steps]

    @property
    def caution(self) -> str:
        """What speaks against this plan, and what to do; empty where nothing does."""
        warmup: float = self.base.train.warmup_steps
        for each in self.space:
            if each.key == "train.warmup_steps":
                warmup = max(each.values, default=each.high)
        if not 0 < self.first_rung < warmup:
            return ""
        return (
            f"asha judges first at step {self.first_rung:,}, before the warm-up of {warmup:,.0f} steps ends: "
            "raise train.steps or lower sweep.rungs"
        )

    def child(self, parameters: Mapping[str, Any]) -> PipelineConfig:
        """The configuration of the training with these values.

        Raises:
            UserError: they do not go together.
        """
        return child_config(self.base, parameters)
