"""`gptpipe worker`: a Prefect worker on this machine, checked before it starts, whose runs are saved when it stops."""

from __future__ import annotations

import base64
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import psutil

from gptpipe import __version__
from gptpipe.errors import UserError
from gptpipe.settings import settings
from gptpipe.torchrun import StopSignals
from gptpipe.wording import counted

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 10
_POLL = 0.2
_MOST_SKEW = 30.0  # seconds


def check(pool: str, wants_gpu: bool) -> None:
    """What would only come out in the middle of a run.

    Raises:
        UserError: the API does not answer or does not let this machine in, the pool is not there, the deployments
            are of another version, the clock differs, the storage cannot be written, or there is no GPU.
    """
    from gptpipe.storage import check_writable, normalize

    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not api:
        raise UserError(
            "no Prefect server", where="PREFECT_API_URL", hint="set it, for example http://10.0.0.1:4200/api"
        )
    _ask(api, f"work_pools/{pool}", f"no work pool {pool}", "run `gptpipe deploy` once, where the server is")
    deployment = _ask(
        api, "deployments/name/train-node/train-node", "nothing is deployed", "run `gptpipe deploy` where the server is"
    )
    if deployment.get("version") != __version__:
        raise UserError(
            f"gptpipe {__version__} here, the server's deployments are of {deployment.get('version')}",
            where=socket.gethostname(),
            hint=f"install gptpipe {deployment.get('version')} here, or deploy this version with `gptpipe deploy`",
        )
    check_writable(normalize(settings().storage_url))
    if wants_gpu:
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "torch sees no GPU", where=socket.gethostname(), hint="mend the driver, or start it with --cpu"
            )


def work(pool: str, name: str, limit: int | None) -> int:
    """Run the worker until it is asked to stop; then have its runs save what they have, and end with them.

    Prefect's own worker kills its runs when it is asked to stop. So the first signal goes to the runs, which save and
    go on elsewhere, and to the worker once they have ended; the second ends all at once.

    Returns:
        The worker's exit code.
    """
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name]
    if limit:
        command += ["--limit", str(limit)]
    if "PREFECT_WORKER_WEBSERVER_PORT" in os.environ:
        command.append("--with-healthcheck")
    here = settings()
    # its runs work in other folders, where no .env lies
    environment = {**os.environ, **here.as_environment(), "GPTPIPE_HOME": str(here.home_path)}
    signals = StopSignals()
    with signals.caught():
        process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_end_with_parent)
        saving: list[psutil.Process] | None = None
        while process.poll() is None:
            if signals.count and saving is None:
                saving = _runs(process.pid)
                if saving:
                    log.warning("%s: %s asked to save", signals.first, counted(len(saving), "run"))
                for run in saving:
                    _signal(run, signal.SIGTERM)
            if signals.count > 1:
                for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    _signal(each, signal.SIGKILL)
            elif saving is not None and not any(_lives(run) for run in saving):
                process.terminate()
            time.sleep(_POLL)
    return process.returncode if saving is None else 0


def _end_with_parent() -> None:
    """A worker that nobody watches any more would take runs beside the one that replaces it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _runs(worker: int) -> list[psutil.Process]:
    """The flow runs that a worker has started."""
    found = []
    for child in psutil.Process(worker).children():
        with suppress(psutil.Error):
            if "prefect.engine" in child.cmdline() or "prefect.flow_engine" in child.cmdline():
                found.append(child)
    return found


def _ask(api: str, path: str, absent: str, hint: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{api}/{path}")
    if key := os.environ.get("PREFECT_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    elif user := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as reply:
            _check_clock(reply.headers.get("Date"))
            found: dict[str, Any] = json.load(reply)
            return found
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(
                f"the Prefect server does not let this machine in ({error.code})",
                where="PREFECT_API_AUTH_STRING" if not os.environ.get("PREFECT_API_KEY") else "PREFECT_API_KEY",
                hint="set it as the server has it",
            ) from None
        if error.code == 404:
            raise UserError(absent, where=api, hint=hint) from None
        raise UserError(f"the Prefect server answers {error.code}", where=api, hint="see its log") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"the Prefect server does not answer: {error}", where=api, hint="start it, or mend the address"
        ) from None


def _check_clock(date: str | None) -> None:
    if date is None:
        return
    skew = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew) > _MOST_SKEW:
        raise UserError(
            f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the Prefect server's",
            where=socket.gethostname(),
            hint="set it by NTP (chrony, systemd-timesyncd)",
        )
