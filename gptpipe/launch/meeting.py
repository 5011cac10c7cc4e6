"""Where the torchruns of a training meet: a store of torch's in the launcher, in which nothing is pickled.

torchrun's own meetings, `c10d`, pickle their state into the store and listen on every address of the machine: whoever
reaches the port has code run. Here the launcher says which node is which; there is nothing to agree on.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from gptpipe.launch.signals import end_with

BACKEND = "gptpipe"  # as pyproject.toml names it to torchrun
_TIMEOUT = timedelta(seconds=60)


class Meeting(RendezvousHandler):
    """One torchrun of several, or the only one, at a store that is there already.

    Args:
        address, port: of the store. node: which one this is, from 0. nodes: how many there are.
    """

    def __init__(self, address: str, port: int, node: int, nodes: int) -> None:
        self._address, self._port, self._node, self._nodes = address, port, node, nodes

    def get_backend(self) -> str:
        """The name that torchrun knows it by."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Yes: ranks meet at the same store, and open none of their own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The store, and this node's number."""
        store = TCPStore(self._address, self._port, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)
        where = RendezvousStoreInfo(self._address, self._port)
        return RendezvousInfo(PrefixStore("torchrun", store), self._node, self._nodes, where)

    def is_closed(self) -> bool:
        """No: the launcher ends it."""
        return False

    def set_closed(self) -> None:
        """Nothing: the launcher ends it."""

    def num_nodes_waiting(self) -> int:
        """None: nobody joins later."""
        return 0

    def get_run_id(self) -> str:
        """Nothing: a store holds one meeting."""
        return ""

    def shutdown(self) -> bool:
        """Nothing is left to do."""
        return True


def torchrun_handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What torchrun calls for a handler. It ends with its launcher from then on: it would wait a minute for a store."""

    def make(given: RendezvousParameters) -> RendezvousHandler:
        end_with(int(given.config["launcher"]))
        address, port = parse_rendezvous_endpoint(given.endpoint, 0)
        return Meeting(address, port, int(given.config["node"]), given.max_nodes)

    return make
