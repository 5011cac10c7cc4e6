"""Where the tasks of a tokenization run: processes of this machine, Dask or Ray, by GPTPIPE_TASK_RUNNER."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from gptpipe.data.build import WINDOW, batched_by_size, process_pool
from gptpipe.errors import UserError
from gptpipe.settings import settings

_THREADS = 64  # each waits for the processes


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
            hint=f"pip install 'gptpipe[{here.task_runner}]', or leave it at processes",
        ) from None
    return runner


@task(name="tokenize a batch", cache_policy=NO_CACHE, persist_result=False)
def do_batch(work: Callable[[Any], Any], batch: list[Any]) -> list[Any]:
    """Do a batch in the process that runs this task: a worker of Dask or Ray."""
    return [work(item) for item in batch]


def run_as_tasks(work: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Do `work` on every task, small ones together, a bounded window of Prefect tasks at a time."""
    count = workers or os.cpu_count() or 1
    with ExitStack() as stack:
        submit: Callable[[list[Any]], Any]
        if settings().task_runner == "processes":
            pool = stack.enter_context(process_pool(count))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)

            @task(name=do_batch.name, cache_policy=NO_CACHE, persist_result=False)
            def do_in_pool(batch: list[Any]) -> list[Any]:
                return list(pool.map(work, batch))

            submit = do_in_pool.submit
        else:

            def submit(batch: list[Any]) -> Any:
                return do_batch.submit(work, batch)

        waiting: deque[Any] = deque()
        for batch in batched_by_size(tasks):
            if len(waiting) >= WINDOW * count:
                yield from waiting.popleft().result()
            waiting.append(submit(batch))
        while waiting:
            yield from waiting.popleft().result()
