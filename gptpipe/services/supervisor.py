"""Long-running processes kept alive by supervisord: its configuration, starting it, and asking it."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gptpipe.errors import UserError
from gptpipe.extras import install_hint
from gptpipe.storage import atomic_file

_SOCKET_LENGTH = 100  # a UNIX socket's path may have 107 characters
_STOP_SECONDS = 45


@dataclass(frozen=True)
class Program:
    """One process to keep alive.

    Attributes:
        user: who runs it, where that is not whoever runs the supervisor.
        stop_signal: what asks it to end; after `stop_seconds` it is killed, with all it started.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    stop_signal: str = "TERM"
    stop_seconds: int = 15


class Supervisor:
    """supervisord with its files in `folder`: configuration, pid, socket, and a log a program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self._config = folder / "supervisord.conf"
        self._pid = folder / "supervisord.pid"
        beside = folder / "supervisord.sock"
        short = Path(tempfile.gettempdir()) / f"gptpipe-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.sock"
        self._socket = beside if len(str(beside)) < _SOCKET_LENGTH else short

    @property
    def url(self) -> str:
        """The supervisor's address, which every program of it finds as SUPERVISOR_SERVER_URL."""
        return f"unix://{self._socket}"

    @property
    def process(self) -> psutil.Process | None:
        """The supervisor, if it runs; also where somebody has removed the file with its number."""
        with suppress(OSError, ValueError, psutil.Error):
            if self._is_it(process := psutil.Process(int(self._pid.read_text()))):
                return process
        if not self._socket.exists():  # it has ended by itself, or was never there
            return None
        return next(filter(self._is_it, psutil.process_iter()), None)

    def _is_it(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return str(self._config) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        return False

    def start(self, programs: list[Program]) -> None:
        """Start it, none of the programs yet. Nothing happens where it runs already with the same ones."""
        content = self._configuration(programs)
        if (process := self.process) is not None:
            if self._config.exists() and self._config.read_bytes() == content.encode():
                write_private(self._pid, f"{process.pid}\n")  # somebody may have removed it
                return
            self.stop()
        self.logs.mkdir(parents=True, exist_ok=True)
        write_private(self._config, content)
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._config)], capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise UserError(
                f"supervisord did not start: {' '.join(reason)}",
                where=str(self._config),
                hint=install_hint("stack"),
            )
        until = time.monotonic() + 15
        while True:
            with suppress(OSError, xmlrpc.client.Error):
                self._api().getState()
                return
            if time.monotonic() > until:
                raise UserError("supervisord does not answer", where=str(self.folder), hint="see supervisord.log there")
            time.sleep(0.05)

    def start_program(self, name: str) -> None:
        """Start one program, unless it runs."""
        if self.states().get(name) in ("RUNNING", "STARTING"):
            return
        with suppress(xmlrpc.client.Fault):  # it came up in between, or ends at once: the health check will tell
            self._api().startProcess(name, False)

    def uptime(self, name: str) -> float:
        """Seconds for which a program has run; 0 where it does not."""
        with suppress(OSError, xmlrpc.client.Error):
            told: Any = self._api().getProcessInfo(name)
            return float(told["now"] - told["start"]) if told["statename"] == "RUNNING" else 0.0
        return 0.0

    def stop_program(self, name: str) -> None:
        """Stop one program, which may take as long as its configuration lets it."""
        with suppress(xmlrpc.client.Fault):  # it ended by itself
            self._api().stopProcess(name, True)

    def states(self) -> dict[str, str]:
        """RUNNING, STARTING, BACKOFF, STOPPED, FATAL … by name; empty when nothing runs."""
        if self.process is None:
            return {}
        with suppress(OSError, xmlrpc.client.Error):
            states: Any = self._api().getAllProcessInfo()
            return {one["name"]: one["statename"] for one in states}
        return {}

    def log_tail(self, name: str, lines: int = 5) -> str:
        """The last lines of a program's log."""
        with suppress(OSError):
            return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
        return ""

    def stop(self) -> None:
        """Stop all programs and the supervisor; no process of theirs is left."""
        process = self.process
        if process is None:
            return
        family = [process, *process.children(recursive=True)]
        with suppress(OSError, xmlrpc.client.Error):
            self._api().shutdown()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for left in alive:
            with suppress(psutil.Error):
                left.kill()
        psutil.wait_procs(alive, timeout=5)
        self._pid.unlink(missing_ok=True)

    def _api(self) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, self.url)
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _configuration(self, programs: list[Program]) -> str:
        lines = [
            "[unix_http_server]",
            f"file={_escape(str(self._socket))}",
            "chmod=0700",
            "[supervisord]",
            f"logfile={_escape(str(self.folder / 'supervisord.log'))}",
            f"pidfile={_escape(str(self._pid))}",
            f"directory={_escape(str(self.folder))}",
            "logfile_maxbytes=10MB",
            "logfile_backups=1",
            *(["user=root"] if os.geteuid() == 0 else []),
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for number, program in enumerate(programs):
            given = ",".join(f"{name}={_quoted(value, name)}" for name, value in sorted(program.environment.items()))
            lines += [
                f"[program:{program.name}]",
                f"command={_escape(shlex.join(program.command))}",
                f"environment={given}",
                f"priority={number + 1}",  # stopped in the reverse order
                "autostart=false",
                "autorestart=true",
                "startretries=100",
                f"stopsignal={program.stop_signal}",
                f"stopwaitsecs={program.stop_seconds}",
                "stopasgroup=false",
                "killasgroup=true",
                "redirect_stderr=true",
                f"stdout_logfile={_escape(str(self.logs / program.name))}.log",
                "stdout_logfile_maxbytes=20MB",
                "stdout_logfile_backups=2",
                *([f"user={program.user}"] if program.user else []),
            ]
        return "\n".join(lines) + "\n"


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    with atomic_file(path) as partial:
        partial.touch(mode=0o600, exist_ok=False)
        partial.write_text(content, "utf-8")


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(value: str, name: str) -> str:
    """A value as supervisord's own shlex reads it, which knows no escapes; `name` is what it is called."""
    quote = next((quote for quote in ('"', "'") if quote not in value), None)
    if quote is None or "\n" in value:
        raise UserError("holds both kinds of quotes, or a line break", where=name, hint="choose another value")
    return f"{quote}{_escape(value)}{quote}"
