"""Prefect's server: that of the stack, and one for a single command, which is gone when the command ends.

Prefect starts the second by itself, but in the terminal's process group, where Ctrl-C ends it before the flow can say
how it ended, and where nothing starts it again. This file is also the servers' process: see `main`.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from gptpipe.errors import UserError, damaged_database, no_space
from gptpipe.progress import NowAndThen
from gptpipe.services.users import join_alone

log = logging.getLogger(__name__)
_START_SECONDS = 180  # 14 s on two cores that did nothing else, ten times as long on a busy machine
_MOST_STARTS = 5  # before it has answered once
_EARLY_SECONDS = 60  # a server that ends within them may do so again
_LONGEST_PAUSE = 10  # seconds between two starts
_POLL = 0.1
_BACKLOG = 512  # requests that wait while it starts
_APP = "prefect.server.api.server:create_app"  # by its name: nothing else here knows Prefect
_LEAST_FREE = 1_000_000  # bytes on the disk of the home, below which its databases cannot be written
_SERVER_VARIABLES = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}


def has_no_space(folder: Path) -> bool:
    """Whether the disk that a folder is on is as good as full: databases write whole pages, and a journal of them."""
    return shutil.disk_usage(folder).free < _LEAST_FREE


class PrefectServer:
    """A server on a free port of this machine, with its database in PREFECT_HOME, for this process and its children.

    It is in a session of its own: the signals of a terminal do not reach it. It ends when this process does. The port
    is this process's: while a server that was killed starts again, requests wait for it. (Prefect's client asks again
    where a connection breaks, but a new one gives up at once where it is refused.)

    Attributes:
        starts: how often it was started.
        alone_since: when no other process ran flows on this database: those that it takes for running since before that
            have no process any more. None where another one did.
    """

    def __init__(self) -> None:
        self._home = Path(os.environ["PREFECT_HOME"])
        self._users, alone = join_alone(self._home)
        self.alone_since = datetime.now(UTC) if alone else None
        self._socket = _listening(0)
        self._port = self._socket.getsockname()[1]
        self.starts, self._started = 0, 0.0
        self._ending = threading.Event()
        self._process = self._start()
        threading.Thread(target=self._watch, name="prefect-server", daemon=True).start()
        atexit.register(self.stop)  # registered before Prefect's own, and so called after them: they still talk to it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    def wait(self) -> None:
        """Until it answers.

        Raises:
            UserError: it does not within three minutes.
        """
        until, say, checked = time.monotonic() + _START_SECONDS, NowAndThen(), 1
        while not self._answers():
            if self.starts > checked:  # it ended by itself: a damaged database does not get better
                checked = self.starts
                _check_database(self._home / "prefect.db")
            if time.monotonic() > until or self.starts >= _MOST_STARTS:
                for folder in (self._home, Path(tempfile.gettempdir())):
                    if has_no_space(folder):
                        raise no_space(str(folder))
                raise UserError(
                    "Prefect's server did not start", where=self.url, hint="GPTPIPE_LOG_LEVEL=DEBUG shows what it says"
                )
            say(lambda seconds: f"waiting for Prefect's server, {seconds:.0f} s")
            time.sleep(_POLL)

    def stop(self) -> None:
        """End it now. Its database needs no farewell, and it would wait for open connections."""
        self._ending.set()
        self._process.kill()
        self._process.wait()
        self._socket.close()  # or what asks it now would wait for ever

    def _answers(self) -> bool:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
            return True
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts, self._started = self.starts + 1, time.monotonic()
        # what it says is for its makers: nobody can act on it
        quiet = None if log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL
        number = self._socket.fileno()
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, "--socket", str(number), "--launcher", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=quiet and subprocess.DEVNULL,
            stderr=quiet,
            env=os.environ | _SERVER_VARIABLES,
            pass_fds=[number],
            start_new_session=True,
        )

    def _watch(self) -> None:
        """Start it again where it has ended; where it ends again and again, refuse requests in the pauses between."""
        early = 0
        while not self._ending.wait(_POLL):
            if self._process.poll() is None:
                continue
            log.warning("Prefect's server went away (%s); starting it again", self._process.returncode)
            early = early + 1 if time.monotonic() - self._started < _EARLY_SECONDS else 0
            if early > 1:
                self._socket.close()
            while self._socket.fileno() < 0:
                if self._ending.wait(min(early, _LONGEST_PAUSE)):
                    return
                with suppress(OSError):  # somebody else has the port for now
                    self._socket = _listening(self._port)
            self._process = self._start()


def _check_database(file: Path) -> None:
    """A UserError where this is a file, and no whole database."""
    if not file.exists():
        return
    if not file.is_file():
        raise UserError("not a file", where=str(file), hint="move it away: a new one is made")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            (said,) = database.execute("pragma quick_check(1)").fetchone()
            said = said if said == "ok" else f"malformed: {said}"
    except sqlite3.DatabaseError as error:
        said = str(error)
    if damaged := damaged_database(said, str(file), "the history of runs in Prefect is gone"):
        raise damaged


def _listening(port: int) -> socket.socket:
    """A socket that takes connections on this machine; port 0 is any that is free."""
    return socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)


def main() -> None:
    """`python -m gptpipe.services.prefect_server`: serve, behind its guard."""
    parser = argparse.ArgumentParser(prog="gptpipe.services.prefect_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--launcher", type=int, help="the process with which it ends; it has no page then")
    parser.add_argument("--socket", type=int, help="the launcher's, that listens, in place of host and port")
    given = parser.parse_args()
    import uvicorn
    from uvicorn.importer import import_from_string

    from gptpipe.config.settings import settings
    from gptpipe.guard import Guard, server_names
    from gptpipe.launch.signals import end_with

    if given.launcher:
        end_with(given.launcher)
    level = "error" if given.launcher else "warning"
    app = import_from_string(_APP)(final=True)
    app = Guard(app, server_names(settings()))  # Prefect asks for its password itself
    config = uvicorn.Config(app, host=given.host, port=given.port, log_level=level, lifespan="on")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(None if given.socket is None else [socket.socket(fileno=given.socket)])


if __name__ == "__main__":
    main()
