"""A Prefect process worker that reports a crash once and takes no more runs from SIGUSR1 on.

`gptpipe.services.worker` starts and stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from httpx import HTTPError
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker
from prefect.states import Failed
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.server.automations import CRASHED_ONCE_MORE

_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FAREWELL_SECONDS = 3.0
_MOST_CRASHES = 3


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

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Give up a run that takes its machine down every time, or does not even begin: it would do so for ever."""
        with suppress(HTTPError, ObjectNotFound):  # raised here, it would end the worker and all that runs on it
            states = await self.client.read_flow_run_states(flow_run.id)
            if sum(state.name == CRASHED_ONCE_MORE for state in states) >= _MOST_CRASHES:
                await self.client.set_flow_run_state(flow_run.id, Failed(message=_given_up(states)), force=True)
                return False
        return await super()._propose_pending_state(flow_run)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        return await super().get_and_submit_flow_runs() if self.takes_more else []


def _given_up(states: Sequence[State[Any]]) -> str:
    """What stands on the page of a run that has crashed too often."""
    last = next((state.message for state in reversed(states) if state.is_crashed() and state.message), "")
    return (
        f"crashed {_MOST_CRASHES} times: its process was killed, could not start, or its machine went away"
        f"{f' (last: {last})' if last else ''} — the worker's log says more; if memory ran out, lower "
        "train.micro_batch or data.workers; then start it again"
    )


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
        for number in _END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # where a loop runs, Prefect would make a coroutine of it that nobody awaits
        farewell = threading.Thread(target=_say_farewell, daemon=True)
        farewell.start()
        farewell.join(3 * _FAREWELL_SECONDS)
        os._exit(code)


def _say_farewell() -> None:
    """Send the last lines for the pages of the worker's runs, unless the server is away."""
    for queue in (APILogWorker, EventsWorker):
        with suppress(Exception):
            queue.drain_all(timeout=_FAREWELL_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


if __name__ == "__main__":
    main()
