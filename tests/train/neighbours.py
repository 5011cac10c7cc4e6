"""`gptpipe.gang.Hosts` whose nodes are processes of this machine: `python neighbours.py INVITATION` is one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptpipe import node
from gptpipe.channel import Invitation
from gptpipe.errors import UserError
from gptpipe.settings import settings
from gptpipe.torchrun import Cancelled
from gptpipe.train.job import Outcome


class Neighbours:
    """Starts a process a node. What is killed is started again by the next attempt."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def this_machine(self) -> Iterator[None]:
        yield

    @contextmanager
    def nodes(self, wanted: int, least: int, poll: Callable[[], None]) -> Iterator[int]:
        poll()
        yield wanted

    def start(self, invitation: Invitation, nodes: int) -> None:
        for number in range(nodes):
            home = settings().home_path / f"node-{number}"
            self.running.append(
                subprocess.Popen(
                    [sys.executable, __file__, invitation.model_dump_json()],
                    env={**os.environ, "GPTPIPE_HOME": str(home)},
                    stdout=subprocess.DEVNULL,
                )
            )

    def ailment(self) -> Outcome | None:
        for process in self.running:
            if process.poll() not in (None, 0):
                return Outcome(status="failed", reason=f"a node ended with {process.returncode}")
        return None

    def missing(self) -> str:
        return "they are being started"

    def end(self) -> None:
        for process in self.running:
            process.wait(20)
        self.running = []


def main(invitation: str) -> int:
    logging.basicConfig(level=logging.INFO, format="node: %(message)s", stream=sys.stderr)
    try:
        print(node.join(Invitation(**json.loads(invitation)), is_cancelled=lambda: False).status)
    except (Cancelled, UserError, node.LinkLost) as error:
        print(f"node: {type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
