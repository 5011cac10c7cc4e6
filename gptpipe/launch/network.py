"""The parent's address, its door for nodes, and torch's store for their rendezvous."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from gptpipe.errors import UserError


def route_to(host: str) -> str:
    """This machine's address on the way to a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # a datagram socket sends nothing to connect
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def listen(address: str, ports: range) -> socket.socket:
    """A listening socket on a free one of these ports.

    Raises:
        UserError: none is free, or the address is not one of this machine.
    """
    for port in ports:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
        except OSError as error:
            listening.close()
            if "assign" in str(error):
                raise UserError(
                    "not an address of this machine", where=f"GPTPIPE_GANG_ADDRESS={address}", hint="see `ip address`"
                ) from None
            continue
        listening.listen(128)
        return listening
    raise UserError("no port is free", where=f"GPTPIPE_GANG_PORTS={ports[0]}-{ports[-1]}", hint="give a wider range")


def rendezvous_store(address: str, listening: socket.socket) -> Any:
    """The rendezvous' store, in this process, on a socket that listens already."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    port = listening.getsockname()[1]
    return TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
        master_listen_fd=listening.detach(),
    )
