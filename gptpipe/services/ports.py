"""TCP ports of this machine: free ones, who holds one, and whether an address answers."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress

import psutil

_ANSWER_SECONDS = 5


def free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def holders() -> dict[int, str]:
    """Who listens, as text, by port."""
    ports = {}
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                ports[connection.laddr.port] = _described(connection.pid)
    return ports


def _described(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    with suppress(psutil.Error):
        return f"{psutil.Process(pid).name()} (process {pid})"
    return f"process {pid}"


def answers(url: str) -> str:
    """What is wrong with an address that should answer 200; empty if it does."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as reply:
            return "" if reply.status == 200 else f"answers {reply.status}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
