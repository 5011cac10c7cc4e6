"""`gptpipe worker`: a Prefect worker on this machine, checked before it starts, whose runs are saved when it stops."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from gptpipe.config.settings import Settings
from gptpipe.errors import UserError
from gptpipe.launch.clocks import check_clock
from gptpipe.launch.signals import StopSignals, send_signal
from gptpipe.services.server_apis import the_prefect_server
from gptpipe.version import __version__
from gptpipe.wording import counted

log = logging.getLogger(__name__)

_POLL = 0.2
_END_SECONDS = 5.0  # after which a worker that has no run left is asked to end once more


def check(pool: str, store: str, *, wants_gpu: bool, make_pool: Callable[[], None] = lambda: None) -> None:
    """What would only come out in the middle of a run.

    Args:
        store: folder or URL for everything that is made.
        make_pool: makes the pool where it is made by its first worker.

    Raises:
        UserError: the API does not answer or does not let this machine in, the pool is not there, the deployments
            are of another version, the clock differs, the storage cannot be written, or there is no GPU.
    """
    from gptpipe.storage import check_writable, normalize

    check_clock(the_prefect_server().skew())
    to_deploy = "run `gptpipe deploy` once, where the server is"
    deployment = the_prefect_server().ask(
        "deployments/name/retrain/on-demand", absent=("nothing is deployed", to_deploy)
    )
    if deployment.get("version") != __version__:
        raise UserError(
            f"gptpipe {__version__} here, the server's deployments are of {deployment.get('version')}",
            where=socket.gethostname(),
            hint=f"install gptpipe {deployment.get('version')} here, or deploy this version with `gptpipe deploy`",
        )
    make_pool()
    the_prefect_server().ask(f"work_pools/{pool}", absent=(f"no work pool {pool}", to_deploy))
    check_writable(normalize(store))
    if wants_gpu:
        from gptpipe.model.gpus import is_available, why_no_gpu

        if not is_available():
            reason, hint = why_no_gpu()
            raise UserError(reason, where=socket.gethostname(), hint=f"{hint}; or start it with --cpu")


def work(command: list[str], settings: Settings) -> int:
    """Run the worker until it is asked to stop; then have its runs save what they have, and end with them.

    Prefect's worker kills its runs when it is asked to stop. So the first signal has the worker take no more runs, has
    the runs save and go on elsewhere, and ends the worker once they have ended; the second ends all at once.

    Args:
        command: starts a worker that takes no more runs from SIGUSR1 on.
        settings: what its runs get, which work in other folders where no `.env` lies.

    Returns:
        The worker's exit code.
    """
    environment = {**os.environ, **settings.as_environment(), "GPTPIPE_HOME": str(settings.home_path)}
    environment.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # by which a run whose machine is gone is found
    signals = StopSignals()
    with signals.caught():
        process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_end_with_parent)
        stopping, asked, end_at = False, set[int](), 0.0
        while process.poll() is None:
            if signals.count and not stopping:
                stopping = True
                process.send_signal(signal.SIGUSR1)
                if running := _runs(process.pid):
                    log.warning("%s: %s asked to save", signals.first, counted(len(running), "run"))
            if signals.count > 1:
                for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    send_signal(each, signal.SIGKILL)
            elif stopping:
                running = _runs(process.pid)
                for run in running:
                    if run.pid not in asked and catches(run.pid, signal.SIGTERM):
                        asked.add(run.pid)
                        send_signal(run, signal.SIGTERM)
                if not running and time.monotonic() > end_at:
                    end_at = time.monotonic() + _END_SECONDS  # a second signal would break off its farewells
                    process.terminate()
            time.sleep(_POLL)
    return 0 if stopping else process.returncode


def _end_with_parent() -> None:
    """A worker that nobody watches any more would take runs beside the one that replaces it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal yet: one that is only starting would be ended by it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return sys.platform != "linux"
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def _runs(worker: int) -> list[psutil.Process]:
    """The flow runs that a worker has started and that have not ended."""
    runs = []
    with suppress(psutil.Error):
        for child in psutil.Process(worker).children():
            with suppress(psutil.Error):
                is_run = any(word.startswith("prefect.") for word in child.cmdline())  # prefect.engine, or its resolver
                if is_run and child.status() != psutil.STATUS_ZOMBIE:
                    runs.append(child)
    return runs
