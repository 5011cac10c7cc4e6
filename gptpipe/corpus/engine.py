"""Who makes the shards: processes of this machine, or what else can do some work on every one of many tasks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context, parent_process, resource_tracker
from typing import Any, Protocol

from gptpipe.cores import usable_cores
from gptpipe.tokenizer import get_tokenizer

WINDOW = 4  # tasks submitted ahead, per worker
# tasks and their bytes to read that are done before processes have started
_FEW, _LITTLE = 64, 2_000_000


class Task(Protocol):
    """Something to do."""

    @property
    def size(self) -> int:
        """Bytes to read."""


class Engine(Protocol):
    """Does work on tasks. Used as a context, at whose end nothing of it goes on."""

    def start(self) -> None:
        """Get ready while something else is done."""

    def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """What `work` makes of every task, in any order. Few tasks are taken ahead of what is done."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


class Processes:
    """Processes of this machine, started when they are first needed, or ahead of that.

    Args:
        workers: how many; 0 for one per core.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers or usable_cores()
        self.pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Let them start and load what they need while something else is done; a single one is this process."""
        if self.workers > 1:
            self.started()

    def started(self) -> ProcessPoolExecutor:
        if self.pool is None:
            # forked ones could inherit a lock that an S3 client or the logger holds
            self.pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
            with _deaf_to_interrupts():
                for _ in range(self.workers):
                    self.pool.submit(get_tokenizer)
        return self.pool

    def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        tasks, pool = chain(first, tasks), None
        if len(first) > 1 and self.workers > 1:
            tasks, pool = self.pool_for(tasks)
        if pool is None:
            yield from map(work, tasks)
            return
        yield from _in_window(lambda task: pool.submit(work, task), tasks, WINDOW * self.workers)

    def pool_for(self, tasks: Iterable[Task]) -> tuple[Iterator[Task], ProcessPoolExecutor | None]:
        """The tasks, and the processes that do them; None where this process has done them before those are there."""
        if self.pool is not None:
            return iter(tasks), self.pool
        tasks = iter(tasks)
        few = list(islice(tasks, _FEW + 1))
        is_little = len(few) <= _FEW and sum(task.size for task in few) <= _LITTLE
        return chain(few, tasks), None if is_little else self.started()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pool is not None:  # after a mistake what is being written is ended in order; a signal waits for nothing
            self.pool.shutdown(wait=kind is not None and issubclass(kind, Exception), cancel_futures=True)


def _in_window(submit: Callable[[Any], Future[Any]], tasks: Iterable[Any], width: int) -> Iterator[Any]:
    """Results in the order they come, with at most `width` tasks submitted and not done."""
    waiting: set[Future[Any]] = set()
    for task in tasks:
        if len(waiting) >= width:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        waiting.add(submit(task))
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile never get Ctrl-C: who started them ends them, and they say nothing."""
    resource_tracker.ensure_running()  # when that starts, it lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
