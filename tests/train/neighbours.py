"""`gptpipe.launch.gang.Hosts` whose nodes are processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptpipe.config.settings import settings
from gptpipe.launch.channel import Invitation
from gptpipe.launch.job import Outcome


class Neighbours:
    """Starts a process a node. What is killed is started again by the next attempt.

    Args:
        absent: how many nodes never come.
        environment: more of it, by the node's number.
    """

    def __init__(self, absent: int = 0, environment: dict[int, dict[str, str]] | None = None) -> None:
        self._absent, self._environment = absent, environment or {}
        self.running: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def this_machine(self) -> Iterator[None]:
        yield

    @contextmanager
    def nodes(self, wanted: int, least: int, poll: Callable[[], None]) -> Iterator[int]:
        poll()
        yield wanted

    def start(self, invitation: Invitation, nodes: int) -> None:
        for number in range(nodes - self._absent):
            home = settings().home_path / f"node-{number}"
            self.running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gptpipe.node", invitation.model_dump_json()],
                    env={**os.environ, "GPTPIPE_HOME": str(home), **self._environment.get(number, {})},
                    stdout=subprocess.DEVNULL,
                )
            )

    def ailment(self) -> Outcome | None:
        cause = self.cause()
        return Outcome(status="failed", reason=cause) if cause else None

    def cause(self) -> str:
        ended = [code for process in self.running if (code := process.poll())]
        return f"a node ended with {ended[0]}" if ended else ""

    def missing(self) -> str:
        return "they are being started"

    def end(self) -> None:
        for process in self.running:
            process.wait(20)
        self.running = []
