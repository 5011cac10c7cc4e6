"""A folder with ports of its own, in which `gptpipe up` and other commands are called as a person would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptpipe.services.ports import free_ports

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))
PORTS = ("PREFECT", "MLFLOW", "S3", "POSTGRES")


def some_ports() -> dict[str, int]:
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))


def wait_until(happens: Callable[[], Any], seconds: float, what: str) -> float:
    """Seconds until it happened."""
    began = time.monotonic()
    while not happens():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
    return time.monotonic() - began


@dataclass
class Place:
    """`gptpipe` called in a folder.

    Attributes:
        host: address that the stack listens on.
        settings: more of the environment.
        workers: those of `start_worker` that have not been stopped.
        since: from when on logs are read; a test of several in one place forgets what others have said.
    """

    folder: Path
    ports: dict[str, int]
    host: str = "127.0.0.1"
    settings: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def environment(self, **more: str) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith(("GPTPIPE_", "PREFECT_"))}
        found |= {f"GPTPIPE_{name}_PORT": str(port) for name, port in self.ports.items()}
        found |= {"GPTPIPE_HOME": str(self.folder / ".gptpipe"), "GPTPIPE_STACK_HOST": self.host, "NO_COLOR": "1"}
        return found | self.settings | more

    def call(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [GPTPIPE, *words],
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=240,
        )

    def stack_environment(self) -> dict[str, str]:
        """What another machine sets to use this stack."""
        lines = (self.folder / ".gptpipe" / "stack" / "stack.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def start_worker(self, name: str, *prefix: str) -> subprocess.Popen[bytes]:
        """`gptpipe worker` with a home of its own, as on another machine; `prefix` puts it into a network."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / ".env").write_text((self.folder / ".gptpipe" / "stack" / "stack.env").read_text())
        environment = self.environment(PREFECT_WORKER_QUERY_SECONDS="2", PREFECT_HOME=str(home / "prefect"))
        del environment["GPTPIPE_HOME"]
        with (home / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [*prefix, GPTPIPE, "worker", "--cpu", "--name", name],
                cwd=home,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        log_file = home / "worker.log"
        wait_until(lambda: f"Worker '{name}' started" in log_file.read_text() or worker.poll(), 60, f"worker {name}")
        assert worker.poll() is None, log_file.read_text()
        return worker

    def processes(self, *words: str) -> dict[int, psutil.Process]:
        """All that runs for this folder, or those of them that have all the words on their command line."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                if process.status() == psutil.STATUS_ZOMBIE or any(word not in command for word in words):
                    continue
                if str(self.folder) in " ".join(command) or str(self.folder) in process.cwd():
                    found[process.pid] = process
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks of all trainings here."""
        launchers = self.processes("gptpipe.train", "torch.distributed.run").keys()
        return {pid: rank for pid, rank in self.processes("gptpipe.train").items() if pid not in launchers}

    def listeners(self) -> dict[str, tuple[str, int]]:
        """By server: the address it listens on, and the process."""
        byport = {
            connection.laddr.port: (connection.laddr.ip, connection.pid or 0)
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        return {name: byport[port] for name, port in self.ports.items() if port in byport}

    def prefect(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The reply of Prefect's API: a POST of `body`, a GET where it is None, or another method."""
        request = urllib.request.Request(
            f"http://{self.host}:{self.ports['PREFECT']}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            content = reply.read()
            return json.loads(content) if content else None

    def deployments(self) -> dict[str, dict[str, Any]]:
        flows = {one["id"]: one["name"] for one in self.prefect("flows/filter", {})}
        return {f"{flows[one['flow_id']]}/{one['name']}": one for one in self.prefect("deployments/filter", {})}

    def press_run(self, deployment: str, **parameters: Any) -> str:
        """Start a deployment as the button does; the id of the flow run."""
        made = self.deployments()[deployment]
        body = {"parameters": {"parameters": parameters}, "state": {"type": "SCHEDULED"}}
        identity: str = self.prefect(f"deployments/{made['id']}/create_flow_run", body)["id"]
        return identity

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.prefect(f"flow_runs/{run}")["state"]
        return found

    def cancel(self, run: str) -> None:
        self.prefect(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def said(self) -> str:
        """The messages of `lines`."""
        return "\n".join(line["message"] for line in self.lines())

    def lines(self) -> list[dict[str, Any]]:
        """The logs of all flow runs since `since`, oldest first."""
        lines: list[dict[str, Any]] = []
        logs = {"timestamp": {"after_": self.since.isoformat()}}
        while True:
            asked = {"logs": logs, "sort": "TIMESTAMP_ASC", "limit": 200, "offset": len(lines)}
            page = self.prefect("logs/filter", asked)
            lines += page
            if len(page) < 200:
                return lines

    def wait_for_words(self, words: str, seconds: float = 15) -> None:
        """Until a log says so: logs come some seconds after the state."""
        wait_until(lambda: words in self.said(), seconds, words)

    def hang_prefect_server(self, seconds: float) -> None:
        """Stop it for so long: it answers nothing, and refuses nothing either."""
        server = psutil.Process(self.listeners()["PREFECT"][1])
        server.suspend()
        try:
            time.sleep(seconds)
        finally:
            server.resume()

    def wait_for_step(self, step: int, of: int) -> None:
        """Until a training of `of` steps has logged one from `step` on."""

        def reached() -> bool:
            lines = [line for line in self.said().splitlines() if f"/{of:,}  loss" in line]
            return any(int(line.split()[1].split("/")[0].replace(",", "")) >= step for line in lines)

        wait_until(reached, 120, f"step {step}")

    def wait_for(self, run: str, kind: str, seconds: float) -> dict[str, Any]:
        """Until a run's state is of that type."""
        until = time.monotonic() + seconds
        while (state := self.state(run))["type"] != kind:
            told = f"{state['name']}: {state.get('message')}\n{self.said()}"
            assert state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), told
            assert time.monotonic() < until, told
            time.sleep(0.3)
        return state


@contextmanager
def stack_in(folder: Path, host: str = "127.0.0.1", **settings: str) -> Iterator[Place]:
    """The stack of a folder, up; whatever has been started there is gone afterwards."""
    for parent in (folder, *list(folder.parents)[:2]):
        parent.chmod(0o755)  # PostgreSQL's own user, where the tests run as root, must be able to pass
    place = Place(folder, some_ports(), host, settings)
    done = place.call("up", "--json")
    try:
        if "PostgreSQL does not run as root" in done.stderr:
            pytest.skip(done.stderr.strip())  # and its own user may not read where this is installed
        assert done.returncode == 0, done.stderr
        (folder / "up.json").write_text(done.stdout)
        yield place
    finally:
        place.call("down")
        for left in place.processes().values():
            with suppress(psutil.Error):
                left.kill()
        for worker in place.workers:
            worker.wait()
