"""Who reserves the machines of a training on several, and starts a node on each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from gptpipe.launch.channel import Invitation
from gptpipe.launch.job import Outcome


class Hosts(Protocol):
    """Who has the machines: Prefect's work pools and limits, in `flows/machines/`.

    Attributes:
        address: where the nodes reach their parent, on this machine.
        ports: those that the parent may take.
    """

    address: str
    ports: range

    def this_machine(self) -> AbstractContextManager[None]:
        """Hold this machine for a training in place; waits for its turn."""

    def nodes(self, most: int, least: int, poll: Callable[[], None]) -> AbstractContextManager[int]:
        """Hold `most` nodes, or at least `least`, all at once; waits for its turn and calls `poll` meanwhile.

        Returns:
            How many there are, from `least` to `most`.
        """

    def start(self, invitation: Invitation, nodes: int) -> None:
        """Have `nodes` nodes call `node.join`."""

    def problem(self) -> Outcome | None:
        """How a node ended that has not said so itself; raises Cancelled when somebody cancelled one."""

    def cause(self) -> str:
        """Why a node has gone without a word; empty if that is not known, or not yet."""

    def missing(self) -> str:
        """Why nodes may not have come, and what to do."""

    def end(self) -> None:
        """Nothing of what was started is needed any more."""
