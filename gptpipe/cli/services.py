"""`gptpipe up`, `down`, `worker`, `deploy` and `doctor`: servers, and machines that work for them."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

from gptpipe.cli.options import Json, command_name, print_answer
from gptpipe.config.settings import STACK_FILE, make_home, settings
from gptpipe.errors import EXIT_FAILED
from gptpipe.guard import is_open
from gptpipe.wording import counted


def up(as_json: Json = False) -> None:
    """Start the local stack: object store, PostgreSQL, Prefect server, MLflow server, a worker; and deploy."""
    from gptpipe.services.servers import POOL
    from gptpipe.services.stack import Stack

    names: list[str] = []
    notes: list[str] = []

    def deployed() -> None:
        make_home(settings().home_path)
        from flows.deployments import deploy as register

        made = register(POOL)
        names.extend(made.names)
        notes.extend(made.notes)

    stack = Stack()
    stack.up(deployed, _say)
    notes += _missing_runs()
    prefect, mlflow, host = stack.servers.prefect_url, stack.servers.mlflow_url, stack.servers.here.stack_host
    text = (
        f"Prefect   {prefect}   start a training there: Deployments, on-demand, Run\n"
        f"MLflow    {mlflow}\n"
        + (f"password  both ask for the one in {stack.folder / STACK_FILE}\n" if is_open(host) else "")
        + f"deployed  {', '.join(names)}\n"
        + "".join(f"note      {note}\n" for note in notes)
        + f"logs      {stack.supervisor.logs}\n"
        f"`{command_name('gptpipe')} run` in this folder uses these servers until `{command_name('gptpipe')} down`."
    )
    answer = {
        "prefect": stack.servers.prefect_url,
        "mlflow": stack.servers.mlflow_url,
        "deployments": names,
        "notes": notes,
    }
    print_answer(answer, as_json, text)


def _missing_runs() -> list[str]:
    """Notes about scheduled deployments for which the server has planned no run within some seconds."""
    from gptpipe.services.doctor import without_upcoming_run

    until = time.monotonic() + 20  # the server's scheduler looks at new deployments every five seconds
    while (missing := without_upcoming_run()) and time.monotonic() < until:
        time.sleep(0.5)
    return [f"{name} is scheduled, but no run of it is planned: see `gptpipe doctor`" for name in missing]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def down(as_json: Json = False) -> None:
    """Cancel what runs and stop the local stack; all data stays."""
    from gptpipe.services.stack import Stack

    def cancelled() -> None:
        from flows.deployments import cancel_running

        if count := cancel_running():
            print(f"cancelled {counted(count, 'run')}", file=sys.stderr, flush=True)

    stack = Stack()
    ran = stack.down(cancelled, _say)
    text = f"stopped; the data is in {stack.folder}" if ran else "nothing was running"
    print_answer({"stopped": ran, "folder": str(stack.folder)}, as_json, text)


def worker(
    pool: Annotated[str, typer.Option(help="Work pool; gptpipe-nodes is that of trainings on several machines.")] = (
        "gptpipe-nodes"
    ),
    name: Annotated[str | None, typer.Option(help="Name of the worker; by default the machine's.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="A machine without a GPU.")] = False,
) -> None:
    """Work for a Prefect server, by default as a node of trainings on several machines, until SIGTERM."""
    make_home(settings().home_path)
    from flows.deployments import deploy_nodes
    from flows.machines.hosts import NODE_POOL
    from flows.machines.worker import command
    from gptpipe.services.worker import check, work

    check(
        pool, settings().storage_url, wants_gpu=not cpu, make_pool=deploy_nodes if pool == NODE_POOL else lambda: None
    )
    # a machine is one node at a time: two trainings would share its devices
    limit = 1 if pool == NODE_POOL else None
    has_health_port = "PREFECT_WORKER_WEBSERVER_PORT" in os.environ
    raise typer.Exit(work(command(pool, name or socket.gethostname(), limit, has_health_port), settings()))


def deploy(
    pool: Annotated[str, typer.Option(help="Work pool whose workers run the flows.")] = "gptpipe", as_json: Json = False
) -> None:
    """Register the deployments with the Prefect server that PREFECT_API_URL names."""
    from gptpipe.services.server_apis import the_prefect_server

    the_prefect_server().ask("admin/version")
    make_home(settings().home_path)
    from flows.deployments import deploy as register

    made = register(pool)
    notes = [*made.notes, *_missing_runs()]
    text = "\n".join([*made.names, *(f"note: {note}" for note in notes)])
    print_answer({"deployments": made.names, "notes": notes}, as_json, text)


def doctor(as_json: Json = False) -> None:
    """What this machine has, and whether storage and tracking answer."""
    from gptpipe.services.doctor import examine

    checks = examine(settings(), is_time)
    mark: Callable[[bool | None], str] = lambda ok: {True: "ok  ", False: "FAIL", None: "    "}[ok]  # noqa: E731
    text = "\n".join(f"{mark(c.ok)} {c.name:12} {c.detail}" + (f" — {c.hint}" if c.hint else "") for c in checks)
    print_answer({"checks": [vars(c) for c in checks]}, as_json, text)
    if any(c.ok is False for c in checks):
        raise typer.Exit(EXIT_FAILED)


def is_time(cron: str) -> bool:
    """Whether Prefect takes a text for a cron expression."""
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError:
        return False
    return True
