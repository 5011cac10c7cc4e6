"""Where the tasks of a tokenization run: processes of this machine, Dask or Ray, by GPTPIPE_TASK_RUNNER."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import begin
from gptpipe.config.settings import settings
from gptpipe.cores import usable_cores
from gptpipe.corpus.engine import WINDOW, Engine, Processes
from gptpipe.errors import UserError
from gptpipe.extras import install_hint

_THREADS = 64  # each waits for the processes
_BATCH_BYTES = 8_000_000
_BATCH_TASKS = 256


def task_runner() -> TaskRunner[Any]:
    """The task runner that the settings name.

    Raises:
        UserError: its package is not installed.
    """
    here = settings()
    if here.task_runner == "processes":
        return ThreadPoolTaskRunner(max_workers=_THREADS)
    try:
        if here.task_runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            runner: TaskRunner[Any] = DaskTaskRunner(address=here.task_runner_address)
        else:
            from prefect_ray.task_runners import RayTaskRunner

            runner = RayTaskRunner(address=here.task_runner_address)
    except ImportError as error:
        raise UserError(
            f"not installed ({error})",
            where=f"GPTPIPE_TASK_RUNNER={here.task_runner}",
            hint=f"{install_hint(here.task_runner)}, or leave it at processes",
        ) from None
    return runner


class Batch:
    """Items that Prefect hands on as they are: in a list it looks for futures, in every source of every item."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items


@task(name="tokenize a batch", cache_policy=NO_CACHE, persist_result=False)
def do_batch(work: Callable[[Any], Any], batch: Batch) -> list[Any]:
    """Do a batch in the process that runs this task: a worker of Dask or Ray."""
    begin()
    return [work(item) for item in batch.items]


def engine(workers: int) -> Engine:
    """What makes the shards in a flow: Prefect tasks, a bounded window of them, small shards several to a task."""
    return _TasksInProcesses(workers) if settings().task_runner == "processes" else _TasksOnCluster(workers)


class _TasksInProcesses(Processes):
    """Each task's thread waits for processes of this machine."""

    def start(self) -> None:
        self.started()

    def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        tasks, pool = self.pool_for(tasks)

        @task(name=do_batch.name, cache_policy=NO_CACHE, persist_result=False)
        def do_in_pool(batch: Batch) -> list[Any]:
            return list((pool.map if pool else map)(work, batch.items))

        yield from _in_window(do_in_pool.submit, tasks, self.workers)


class _TasksOnCluster:
    """The tasks themselves do the work, wherever Dask or Ray runs them."""

    def __init__(self, workers: int) -> None:
        self._workers = workers or usable_cores()

    def start(self) -> None:
        """It runs already."""

    def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        yield from _in_window(lambda batch: do_batch.submit(work, batch), tasks, self._workers)

    def __enter__(self) -> _TasksOnCluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The task runner ends with the flow."""


def _in_window(submit: Callable[[Batch], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    waiting: deque[Any] = deque()
    for batch in _batched_by_size(tasks):
        if len(waiting) >= WINDOW * workers:
            yield from waiting.popleft().result()
        waiting.append(submit(Batch(batch)))
    while waiting:
        yield from waiting.popleft().result()


def _batched_by_size(tasks: Iterable[Any]) -> Iterator[list[Any]]:
    """Tasks, largest first, in groups of about `_BATCH_BYTES` to read, so that small ones share a submission."""
    batch: list[Any] = []
    size = 0
    for item in tasks:
        if batch and (size + item.size > _BATCH_BYTES or len(batch) == _BATCH_TASKS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch
