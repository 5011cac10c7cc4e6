"""A Prefect process worker that reports a crash once and takes no more runs from SIGUSR1 on.

`gptpipe.services.worker` starts and stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FAREWELL_SECONDS = 3.0


class SavingWorker(ProcessWorker):
    """Prefect's own worker would take up again the very run that has just been saved because this machine goes away."""

    takes_more = True

    @classmethod
    def __dispatch_key__(cls) -> str:  # under Prefect's own name it would warn of two
        return "gptpipe-process"

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> ProcessWorkerResult:
        """Run a flow run to its end.

        The runner inside has reported by then how the process ended. The worker would report it again, seconds later,
        and make a crash of the attempt that goes on meanwhile: so it is told that all went well.
        """
        result = await super().run(flow_run, configuration, task_status)
        return result.model_copy(update={"status_code": 0})

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        return await super().get_and_submit_flow_runs() if self.takes_more else []


def command(pool: str, name: str, limit: int | None, with_healthcheck: bool) -> list[str]:
    """What starts one, at most `limit` runs at a time."""
    # -P: a folder called flows where it is started is another's
    words = [sys.executable, "-P", "-m", "flows.machines.worker", "--pool", pool, "--name", name]
    words += ["--limit", str(limit)] if limit else []
    return [*words, "--with-healthcheck"] if with_healthcheck else words


def main() -> None:
    parser = argparse.ArgumentParser(prog="flows.machines.worker")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--with-healthcheck", action="store_true")
    given = parser.parse_args()
    worker = SavingWorker(work_pool_name=given.pool, name=given.name, limit=given.limit, create_pool_if_not_found=False)

    def take_no_more(*_: Any) -> None:
        worker.takes_more = False

    signal.signal(signal.SIGUSR1, take_no_more)
    asyncio.run(_work(worker, given.with_healthcheck))


async def _work(worker: ProcessWorker, with_healthcheck: bool) -> NoReturn:
    """Run the worker until it is asked to stop, then end the process from here.

    Every signal cancels this task, so that nothing is broken off elsewhere: Prefect's own handlers raise
    KeyboardInterrupt at whatever line runs. After the loop Python would wait for all threads, and a worker was seen to
    wait for one of them for ever, while its machine took no run any more.
    """
    loop, task, code = asyncio.get_running_loop(), asyncio.current_task(), 1
    assert task is not None
    for number in _END_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await worker.start(with_healthcheck=with_healthcheck)
        code = 0
    except BaseException:  # Python would not come to say it
        traceback.print_exc()
    finally:
        _say_farewell()
        os._exit(code)


def _say_farewell() -> None:
    """Send the last lines for the pages of the worker's runs, unless the server is away."""
    for number in _END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for queue in (APILogWorker, EventsWorker):
        with suppress(Exception):
            queue.drain_all(timeout=_FAREWELL_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


if __name__ == "__main__":
    main()
