"""Whether the settings can mean what they say: names, schedules, files, databases, who may read them."""

from __future__ import annotations

import difflib
import os
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import psutil
from dotenv import dotenv_values

from gptpipe import storage
from gptpipe.config import load_config
from gptpipe.config.settings import Settings
from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.guard import EVERYWHERE, is_open

_CRONS = ("nightly_cron", "watch_cron", "champion_cron", "clean_cron")
_SECRET = ("SECRET", "PASSWORD", "AUTH", "WEBHOOK", "API_KEY", "SWEEPS_URI", "TOKEN")  # in the names of variables


@dataclass
class Check:
    """One line: `ok` is None where there is nothing to pass or fail."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def check_settings(here: Settings, environment: Mapping[str, str], is_time: Callable[[str], bool]) -> list[Check]:
    """A check that says what is wrong for each part of the settings that is; one that says so where nothing is.

    Args:
        is_time: whether Prefect takes a text for a cron expression.
    """
    parts: list[Callable[[], Check | None]] = [
        lambda: _names(environment),
        _who_may_read,
        lambda: _schedules(here, is_time),
        lambda: _what_is_trained(here),
        lambda: _jobset(here),
        lambda: _ports(here),
        lambda: _address(here),
        lambda: _registry(here),
        lambda: _sweeps(here),
        lambda: _task_runner(here),
        lambda: _webhook(here),
    ]
    found = [check for part in parts if (check := part())]
    return found or [Check("settings", True, "every variable is known, and what it names can be used")]


def _wrong(detail: str, hint: str) -> Check:
    return Check("settings", False, detail, hint)


def _names(environment: Mapping[str, str]) -> Check | None:
    known = {f"GPTPIPE_{name.upper()}" for name in Settings.model_fields}
    given = {name for name in {*environment, *dotenv_values(".env")} if name.startswith("GPTPIPE_")}
    if not (unknown := sorted(given - known)):
        return None
    alike = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"is {alike[0]} meant?" if alike else "see .env.example for those that there are"
    return _wrong(f"no setting is called {', '.join(unknown)}", hint)


def _who_may_read() -> Check | None:
    file = Path(".env")
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        secret = [name for name, value in dotenv_values(file).items() if value and any(w in name for w in _SECRET)]
    except OSError:
        return None
    if not secret or not mode & 0o077:
        return None
    return _wrong(f".env holds {secret[0]}, and others on this machine may read it", "chmod 600 .env")


def _schedules(here: Settings, is_time: Callable[[str], bool]) -> Check | None:
    try:
        ZoneInfo(here.timezone)
    except (OSError, ValueError, KeyError):  # by whether it is empty, a path, or a name that is not there
        return _wrong(f"GPTPIPE_TIMEZONE={here.timezone} is no time zone", "for example Europe/Berlin")
    for name in _CRONS:
        if (cron := getattr(here, name)) and not is_time(cron):
            return _wrong(f"GPTPIPE_{name.upper()}={cron} is no time", "minute hour day month weekday: 0 2 * * *")
    return None


def _what_is_trained(here: Settings) -> Check | None:
    if here.retrain_config is None:
        return None
    try:
        load_config(file=here.retrain_config)
    except UserError as error:
        return _wrong(f"GPTPIPE_RETRAIN_CONFIG: {error.where}: {error.message}", error.hint)
    return None


def _jobset(here: Settings) -> Check | None:
    if here.jobset is None:
        return None
    if not here.jobset.is_file():
        return _wrong(f"GPTPIPE_JOBSET={here.jobset} is no file", "see infra/kubernetes/jobsets/jobset.yaml")
    if find_spec("kubernetes") is None:
        return _wrong("GPTPIPE_JOBSET is set, and Kubernetes' client is absent", install_hint("kubernetes"))
    return None


def _ports(here: Settings) -> Check | None:
    ports = here.gang_port_range
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        return _wrong(f"GPTPIPE_GANG_PORTS={here.gang_ports} holds no port", "the lower one first: 29400-29499")
    names = ("prefect_port", "mlflow_port", "s3_port", "postgres_port")
    own = {getattr(here, name): f"GPTPIPE_{name.upper()}" for name in names}
    if len(own) < len(names):
        return _wrong("two servers of `gptpipe up` have the same port", "see GPTPIPE_PREFECT_PORT and the like")
    if taken := [name for port, name in own.items() if port in ports]:
        return _wrong(f"{taken[0]} lies within GPTPIPE_GANG_PORTS={here.gang_ports}", "move one of them")
    return None


def _address(here: Settings) -> Check | None:
    host = here.stack_host
    if host in EVERYWHERE or not is_open(host):
        return None
    try:
        meant = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return _wrong(f"GPTPIPE_STACK_HOST={host} is no address", "give one of this machine's, or 127.0.0.1")
    own = {address.address for card in psutil.net_if_addrs().values() for address in card}
    if meant & own:
        return None
    return _wrong(f"GPTPIPE_STACK_HOST={host} is not this machine", "servers listen on one of its own addresses")


def _registry(here: Settings) -> Check | None:
    if here.tracking_uri.startswith("http") and storage.is_local(here.storage_url):
        detail = f"a tracking server registers no model from a local folder: GPTPIPE_STORAGE={here.storage_url}"
        return _wrong(detail, "set GPTPIPE_STORAGE to an s3:// URL, or promote.register_model=false")
    return None


def _sweeps(here: Settings) -> Check | None:
    if here.sweeps_uri is None:
        return None
    if here.sweeps_uri == here.tracking_uri:
        return _wrong("GPTPIPE_SWEEPS_URI is MLflow's own database", "name one of its own: both keep alembic_version")
    from gptpipe.sweep.database import explained

    try:
        with explained(here.sweeps_uri):
            open_database(here.sweeps_uri)
    except UserError as error:
        return _wrong(f"{error.where}: {error.message}", error.hint)
    return None


def open_database(uri: str) -> None:
    """Open it and read something, once.

    Raises:
        SQLAlchemyError: it does not answer, or is none. ImportError: its driver is absent.
    """
    from sqlalchemy import create_engine, inspect

    from gptpipe.sweep.database import check_address

    check_address(uri)
    engine = create_engine(uri)
    try:
        inspect(engine).get_table_names()  # to connect reads nothing of a file
    finally:
        engine.dispose()


def _task_runner(here: Settings) -> Check | None:
    packages = {"dask": "prefect_dask", "ray": "prefect_ray"}
    package = packages.get(here.task_runner)
    if package and find_spec(package) is None:
        return _wrong(f"GPTPIPE_TASK_RUNNER={here.task_runner} is not installed", install_hint(here.task_runner))
    if here.task_runner_address and package is None:
        return _wrong("GPTPIPE_TASK_RUNNER_ADDRESS is set for processes", "set GPTPIPE_TASK_RUNNER to dask or ray too")
    return None


def _webhook(here: Settings) -> Check | None:
    if here.webhook_url is None or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return None  # a proxy knows names that this machine does not
    host = urlsplit(here.webhook_url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return _wrong(f"GPTPIPE_WEBHOOK names a host that is not known here: {host}", "fix the address")
    return None
