"""Who makes the shards: this process where there is little to read, others where there is more."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gptpipe.corpus.engine import Processes


@dataclass(frozen=True)
class Task:
    size: int
    number: int = 0


def double(task: Task) -> int:
    return task.number * 2


@pytest.mark.parametrize(
    ("sizes", "starts"),
    [([], False), ([10**9], False), ([1000] * 64, False), ([1_500_000, 1_500_000], True), ([1] * 65, True)],
    ids=["nothing", "one", "little", "more", "many"],
)
def test_processes_start_only_for_more_than_one_does_meanwhile(sizes: list[int], starts: bool) -> None:
    tasks = [Task(size, number) for number, size in enumerate(sizes)]
    with Processes(2) as engine:
        assert sorted(engine.run(double, iter(tasks))) == [2 * number for number in range(len(sizes))]
        assert (engine.pool is not None) is starts


def test_processes_that_are_there_do_the_little_too() -> None:
    with Processes(2) as engine:
        engine.start()
        assert sorted(engine.run(double, [Task(1, 1), Task(1, 2)])) == [2, 4]
        tasks, pool = engine.pool_for([Task(1)])
        assert list(tasks) == [Task(1)]
        assert pool is engine.pool is not None
