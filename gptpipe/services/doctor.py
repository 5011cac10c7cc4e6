"""What this machine has, and whether what the settings name answers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

import psutil

from gptpipe import storage
from gptpipe.config.settings import Settings
from gptpipe.cores import usable_cores
from gptpipe.errors import UserError
from gptpipe.launch.clocks import check_clock
from gptpipe.services.server_apis import the_mlflow_server, the_prefect_server
from gptpipe.services.settings_checks import Check, check_settings, open_database
from gptpipe.services.stack import Stack
from gptpipe.tracking.client import Tracking
from gptpipe.version import __version__
from gptpipe.wording import counted

_NOT_DEPLOYED = ("nothing is deployed", "`gptpipe deploy` makes the button and the schedules")
_PACKAGES = ("torch", "prefect", "mlflow", "tiktoken", "pyarrow", "s3fs", "safetensors")


def examine(settings: Settings, is_time: Callable[[str], bool]) -> list[Check]:
    """All checks of what the settings name; none raises.

    Args:
        is_time: whether Prefect takes a text for a cron expression.
    """
    return [
        _versions(),
        _machine(settings.home_path),
        _device(),
        _tokenizer(),
        *check_settings(settings, os.environ, is_time),
        _storage(settings.storage_url),
        _tracking(Tracking.of(settings)),
        _prefect(),
        _schedules(),
        _workers(),
        _stack(),
        _logs(),
    ]


def _versions() -> Check:
    versions, missing = [f"gptpipe {__version__}", f"Python {platform.python_version()}"], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    hint = f"missing: {', '.join(missing)}; install gptpipe again" if missing else ""
    return Check("versions", not missing, ", ".join(versions), hint)


def _machine(home: Path) -> Check:
    memory = psutil.virtual_memory()
    place = next(p for p in (home, *home.parents) if p.exists())
    free = psutil.disk_usage(str(place)).free / 1e9
    sizes = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free, {free:.0f} GB disk free"
    detail = f"{counted(usable_cores(), 'core')} of {os.cpu_count()}, {sizes}"
    return Check("machine", free > 1, detail, "" if free > 1 else "free some disk space")


def _device() -> Check:
    import torch

    from gptpipe.model.precision import has_bfloat16, pick_device

    kind = pick_device("auto")
    device = torch.device(kind)
    if kind == "cuda":
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        detail = f"{torch.cuda.device_count()} GPUs: {names}"
    else:
        detail = "CPU, no GPU that torch can use"
    return Check("device", None, f"{detail}; bfloat16 {'in hardware' if has_bfloat16(device) else 'not in hardware'}")


def _tokenizer() -> Check:
    from gptpipe.tokenizer import get_tokenizer

    try:
        return Check("tokenizer", True, f"gpt2, {get_tokenizer('gpt2').vocab_size:,} tokens, without network")
    except UserError as error:
        return Check("tokenizer", False, error.message, error.hint)


def _storage(url: str) -> Check:
    try:
        storage.check_writable(url)
        return Check("storage", True, f"{url} can be written and read")
    except UserError as error:
        return Check("storage", False, f"{url}: {error.message}", error.hint)


def _tracking(tracking: Tracking) -> Check:
    uri = tracking.uri
    if not tracking.is_server:
        if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
            return Check("tracking", True, f"{uri} (made at the first run)")
        return _experiment(tracking) or Check("tracking", True, tracking.place)
    try:
        running = str(the_mlflow_server(uri).ask("version")).strip()
        the_mlflow_server(uri).ask("api/2.0/mlflow/registered-models/search?max_results=1")
    except UserError as error:
        return Check("tracking", False, str(error), "start the MLflow server or set GPTPIPE_MLFLOW_URI")
    return _experiment(tracking) or Check(
        "tracking", True, f"MLflow {running} at {uri} answers and lets this machine in"
    )


def _experiment(tracking: Tracking) -> Check | None:
    """What is wrong with the experiment that runs go to."""
    try:
        if not tracking.is_server:
            from sqlalchemy.exc import SQLAlchemyError

            try:
                open_database(tracking.uri)  # MLflow would ask again for two minutes
            except (SQLAlchemyError, ImportError) as error:
                raise tracking.refusal(error) from None
        with tracking.reached() as client:
            tracking.experiment_id(client)
    except UserError as error:
        return Check("tracking", False, str(error))
    return None


def _prefect() -> Check:
    if not os.environ.get("PREFECT_API_URL"):
        return Check("prefect", None, "no PREFECT_API_URL: `gptpipe run` starts a server in its own process")
    try:
        server = the_prefect_server()
        running = server.ask("admin/version")
        check_clock(server.skew())
        detail = f"Prefect {running} at {server.url} answers and lets this machine in"
        deployed = server.ask("deployments/name/retrain/on-demand", absent=_NOT_DEPLOYED)["version"]
    except UserError as error:
        if (error.message, error.hint) == _NOT_DEPLOYED:
            return Check("prefect", True, f"{detail}; {error.message}: {error.hint}")
        return Check("prefect", False, str(error))
    if deployed != __version__:
        return Check(
            "prefect",
            False,
            f"{detail}; gptpipe {deployed} is deployed, this is {__version__}",
            "run `gptpipe deploy`, or install that version here",
        )
    return Check("prefect", True, f"{detail}; gptpipe {deployed} is deployed")


def without_upcoming_run() -> list[str]:
    """The deployments of gptpipe that are scheduled and not paused, and of which the server has planned no run.

    Raises:
        UserError: the server does not answer.
    """
    return _scheduled()[1]


def _scheduled() -> tuple[list[str], list[str]]:
    """The scheduled deployments with their next run, as text, and the names of those without one."""
    server = the_prefect_server()
    tagged = {"deployments": {"tags": {"all_": ["gptpipe"]}}}
    flows = {one["id"]: one["name"] for one in server.find("flows/filter", tagged)}
    planned, missing = [], []
    for one in server.find("deployments/filter", tagged):
        if one["paused"] or not any(schedule["active"] for schedule in one["schedules"]):
            continue
        name = f"{flows.get(one['flow_id'], '?')}/{one['name']}"
        runs = server.find(
            "flow_runs/filter",
            {
                "flow_runs": {"deployment_id": {"any_": [one["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
                "sort": "NEXT_SCHEDULED_START_TIME_ASC",
                "limit": 1,
            },
        )
        if runs:
            planned.append(f"{name} next at {runs[0]['next_scheduled_start_time'][:16].replace('T', ' ')} UTC")
        else:
            missing.append(name)
    return planned, missing


def _schedules() -> Check:
    if not os.environ.get("PREFECT_API_URL"):
        return Check("schedules", None, "no PREFECT_API_URL: nothing is scheduled")
    try:
        planned, missing = _scheduled()
    except UserError as error:
        return Check("schedules", False, str(error))
    if missing:
        hint = "the server's scheduler does not work: see its log; sqlalchemy 2.1 and newer break it"
        return Check("schedules", False, f"no run is planned of {', '.join(missing)}", hint)
    return Check("schedules", True, "; ".join(planned) or "no deployment is scheduled")


def _logs() -> Check:
    """Whether a server has failed in silence: tracebacks in its log since the stack was started."""
    stack = Stack()
    if not stack.supervisor.states():
        return Check("logs", None, "the stack is not up")
    tracebacks = stack.tracebacks()
    if tracebacks:
        told = "; ".join(
            f"{name}.log {counted(len(lines), 'traceback')}, last: {lines[-1]}" for name, lines in tracebacks.items()
        )
        return Check("logs", False, told, f"see {stack.supervisor.logs}")
    return Check("logs", True, f"no traceback in the servers' logs in {stack.supervisor.logs} since `gptpipe up`")


def _workers() -> Check:
    """Whether somebody works for the pools that deployments are in."""
    if not os.environ.get("PREFECT_API_URL"):
        return Check("workers", None, "no PREFECT_API_URL: `gptpipe run` needs none")
    try:
        server = the_prefect_server()
        deployed = server.find("deployments/filter", {"deployments": {"tags": {"all_": ["gptpipe"]}}})
        # machines that train together come and go, and what runs on one needs none of them
        needed = [one for one in deployed if one["work_pool_name"] and one["name"] != "train-node"]
        pools = sorted({str(one["work_pool_name"]) for one in needed})
        workers = {pool: server.find(f"work_pools/{quote(pool, safe='')}/workers/filter", {}) for pool in pools}
    except UserError as error:
        return Check("workers", False, str(error))
    here = {pool: [one["name"] for one in those if one["status"] == "ONLINE"] for pool, those in workers.items()}
    idle = [pool for pool, names in here.items() if not names]
    if idle:
        hint = f"start one: `gptpipe worker --cpu --pool {idle[0]}`, or `gptpipe up` on this machine"
        return Check("workers", False, f"nobody works for the pool {', '.join(idle)}: runs wait", hint)
    told = "; ".join(f"{pool}: {', '.join(names)}" for pool, names in here.items())
    return Check("workers", True, told or "nothing is deployed that needs one")


def _stack() -> Check:
    """The servers of `gptpipe up`, where it was run here."""
    stack = Stack()
    health = stack.health()
    if not health and (strays := stack.strays()):
        told = f"its supervisor is gone, and {len(strays)} of its processes run on"
        return Check("stack", False, told, "`gptpipe up` starts all again")
    if not health:
        return Check("stack", None, "not up: `gptpipe up` starts servers and a worker on this machine")
    ill = [f"{name} {problem}" for name, problem in health.items() if problem]
    if ill:
        return Check(
            "stack", False, "; ".join(ill), f"`gptpipe up` starts it again; its log is in {stack.supervisor.logs}"
        )
    return Check("stack", True, f"{', '.join(health)} are well")
