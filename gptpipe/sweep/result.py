"""What a sweep came to: its trainings in a table, the best one's settings, and how much each key mattered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gptpipe.sweep.plan import Plan
from gptpipe.sweep.space import chosen_values
from gptpipe.sweep.study import Row
from gptpipe.wording import cell, counted

TRAINED = ("finished", "pruned")


@dataclass(frozen=True)
class SweepResult:
    """A sweep, whole or so far.

    Attributes:
        rows: its trainings, by number. importances: shares that sum to 1, by key; empty where too few trainings tell.
    """

    plan: Plan
    rows: list[Row]
    importances: dict[str, float]

    @property
    def best(self) -> Row | None:
        """The finished training with the least loss; the first of those that are alike."""
        finished = [row for row in self.rows if row.state == "finished" and row.loss is not None]
        return min(finished, key=lambda row: (row.loss, row.number), default=None)

    @property
    def ranking(self) -> list[Row]:
        """Finished trainings by their loss, then those that were stopped by how far they came, then the others."""

        def place(row: Row) -> tuple[int, int, float, int]:
            loss = float("inf") if row.loss is None else row.loss
            if row.state == "finished":
                return 0, 0, loss, row.number
            return (1 if row.state == "pruned" else 2), -row.steps, loss, row.number

        return sorted(self.rows, key=place)

    @property
    def yaml(self) -> str:
        """A file for `gptpipe run --config` that says the best training; empty where none has finished."""
        best = self.best
        if best is None:
            return ""
        values = chosen_values(self.plan.child(best.parameters))
        return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)

    @property
    def sentence(self) -> str:
        """How many trainings there were, what they cost, and which one is best."""
        steps, full = sum(row.steps for row in self.rows), len(self.rows) * self.plan.base.train.steps
        states = [row.state for row in self.rows]
        counts = [counted(len(states), "training")]
        counts += [f"{states.count(name)} {said}" for name, said in _SAID.items() if name in states]
        share = f", {steps / full:.0%} of what all of them would take" if full and "pruned" in states else ""
        best = self.best
        verdict = (
            f"; best is {best.number}, {best.loss:.4f} nats per token: {_shown(best)}" if best else "; none is done"
        )
        return f"{', '.join(counts)}; {counted(steps, 'step')}{share}{verdict}"

    def table(self, link: Callable[[Row], str] = lambda row: "") -> str:
        """The trainings in Markdown, the best first.

        Args:
            link: the address of a training's run; empty where there is none.
        """
        keys = [dimension.key for dimension in self.plan.space]
        lines = [f"| | {' | '.join(map(cell, keys))} | loss | steps | state |"]
        lines.append(f"| ---: |{' ---: |' * (len(keys) + 2)} --- |")
        for row in self.ranking:
            number = f"[{row.number}](<{link(row)}>)" if link(row) else str(row.number)
            values = [_value(row.parameters.get(key)) for key in keys]
            loss = "–" if row.loss is None else f"{row.loss:.4f}"
            state = f"{row.state}: {row.reason}" if row.reason else row.state
            state = f"the same as {row.copy_of}" if row.copy_of is not None else state
            lines.append(f"| {number} | {' | '.join(map(cell, values))} | {loss} | {row.steps:,} | {cell(state)} |")
        return "\n".join(lines)

    @property
    def importance_table(self) -> str:
        """How much of what makes a training good each key decides, in Markdown; empty where too few trainings tell."""
        if not self.importances:
            return ""
        lines = [f"| {cell(key)} | {share:.0%} |" for key, share in self.importances.items()]
        return "\n".join(["| key | importance |", "| --- | ---: |", *lines])

    def markdown(self, link: Callable[[Row], str] = lambda row: "") -> str:
        """The whole page: sentence, table, importances, and the best one's file."""
        rung = self.plan.first_rung
        note = f"Trainings are judged from step {rung:,} on; importances are of the losses there." if rung else ""
        block = "\n".join(f"    {line}" for line in self.yaml.splitlines())
        file = f"The best one's settings, for `gptpipe run --config best.yaml`:\n\n{block}" if block else ""
        parts = [self.sentence, self.table(link), note, self.importance_table, file]
        return "\n\n".join(part for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        best = self.best
        return {
            "name": self.plan.name,
            "method": self.plan.sweep.method,
            "sentence": self.sentence,
            "steps": sum(row.steps for row in self.rows),
            "trials": [row.as_dict() for row in self.rows],
            "best": {**best.as_dict(), "config": chosen_values(self.plan.child(best.parameters))} if best else None,
            "importances": self.importances,
        }


def plain_table(result: SweepResult) -> list[str]:
    """The trainings as lines of a terminal, the best first."""
    keys = [dimension.key for dimension in result.plan.space]
    rows: list[Sequence[str]] = [["", *keys, "loss", "steps", "state"]]
    for row in result.ranking:
        loss = "–" if row.loss is None else f"{row.loss:.4f}"
        values = [_value(row.parameters.get(key)) for key in keys]
        rows.append([str(row.number), *values, loss, f"{row.steps:,}", row.state])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


_SAID = {"finished": "finished", "pruned": "stopped early", "failed": "failed", "running": "not done yet"}


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(row: Row) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in row.parameters.items())
