"""Rounds: an undisturbed run, and others like it of which each is attacked and held against it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.alone import PREFECT, Alone, marks_of
from tests.chaos.attack import ALONE, STACKED, Attack
from tests.chaos.outcome import differences
from tests.chaos.stacked import Stacked
from tests.fixtures.place import folder_for_all, stack_in


@dataclass(frozen=True)
class Round:
    """What came of an attack.

    Attributes:
        struck: whether it met its victim: some come after it has ended. ends: exit codes or states, one for each try.
        seconds: of each try. notes: what is worth reading and no fault. faults: what must not be.
    """

    world: str
    seed: int
    attack: Attack
    struck: bool
    ends: list[str]
    seconds: list[float]
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = "; ".join(self.faults) or ("the same" if self.struck else "came too late")
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{self.seed}: {self.attack}: {', '.join(self.ends)} in {sum(self.seconds):.0f} s: {verdict}{notes}"


def alone(seeds: Iterable[int], folder: Path, parallel: int, keep: bool) -> Iterator[Round]:
    """Rounds of one command that makes everything.

    Args:
        parallel: so many at a time. keep: the folders of rounds without a fault too.
    """
    undisturbed = Alone(folder / "undisturbed")
    undisturbed.prepare()
    undisturbed.run()
    assert undisturbed.tries[-1].code == 0, undisturbed.tries[-1].said
    marks = ["", *marks_of("\n".join(undisturbed.tries[-1].said))]
    work = partial(_alone, folder=folder, marks=marks, undisturbed=undisturbed.outcome(), keep=keep)
    with ThreadPoolExecutor(parallel) as pool:
        for done in as_completed([pool.submit(work, seed) for seed in seeds]):
            yield done.result()


def _alone(seed: int, folder: Path, marks: list[str], undisturbed: dict[str, Any], keep: bool) -> Round:
    attack = Attack.drawn(seed, marks, ALONE)
    run = Alone(folder / f"round-{seed}")
    run.prepare({PREFECT: folder / "undisturbed" / "home" / PREFECT})
    try:
        run.run(attack)
        faults = [fault for each in run.tries for fault in each.faults]
        last = run.tries[-1]
        if not last.code:
            faults += differences(run.outcome(), undisturbed)
        elif not run.names_what_was_flipped:
            faults.append(f"it did not end well: {' / '.join(last.said[-2:])}")
        notes = [f"flipped {file.relative_to(run.home)}" for file in run.flipped]
        notes += [" — ".join(last.answer["error"].values())] if last.code and "error" in last.answer else []
        faults += [f"{run.unended} flow runs never end"] if run.unended and not last.code else []
    finally:
        run.end()
    if not faults and not keep:
        shutil.rmtree(run.folder)
    ends, seconds = [f"exit {each.code}" for each in run.tries], [each.seconds for each in run.tries]
    return Round("alone", seed, attack, run.strikes > 0, ends, seconds, notes, faults)


def stacked(seeds: Iterable[int]) -> Iterator[Round]:
    """Rounds on the servers of `gptpipe up`, one after the other."""
    with folder_for_all("chaos") as folder, stack_in(folder) as place:
        undisturbed = Stacked(place, "undisturbed")
        undisturbed.run(None)
        assert undisturbed.states == ["COMPLETED"], undisturbed.messages
        marks, expected = ["", *marks_of(undisturbed.said)], undisturbed.outcome()
        assert expected["weights and moments"], expected
        for seed in seeds:
            attack = Attack.drawn(seed, marks, STACKED)
            run = Stacked(place, f"round-{seed}")
            run.run(attack)
            faults = []
            if run.states[-1] == "COMPLETED":
                faults += differences(run.outcome(), expected)
            else:
                faults.append(f"it did not end well: {run.messages[-1]}")
            if run.traces:
                faults.append("a trace on its page")
            notes = [message for message in run.messages[:-1] if message]
            yield Round("stacked", seed, attack, run.strikes > 0, run.states, run.seconds, notes, faults)
