"""Who may talk to a server of the stack: requests for it by its names, from its own pages, with its password."""

from __future__ import annotations

import base64
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import psutil

from gptpipe.config.settings import LOOPBACK, Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PROBES = ("/health", "/api/health", "/api/ready")  # asked by address, by whoever watches over the server
EVERYWHERE = ("0.0.0.0", "::")


def is_open(host: str) -> bool:
    """Whether other machines reach a server that listens on this address."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host not in LOOPBACK


def server_names(here: Settings) -> set[str]:
    """What a server of the stack is called by browsers and other machines, in small letters."""
    names = {*LOOPBACK, here.stack_host, *here.stack_name_list}
    if here.stack_host in EVERYWHERE:
        names |= {socket.gethostname(), socket.getfqdn()}
        names |= {address.address for card in psutil.net_if_addrs().values() for address in card}
    return {name.lower() for name in names}


class Guard:
    """An ASGI application before another one.

    A browser that was lured to a stranger's page must not work for the stranger: the name in `Host` has to be one of
    the server's own, or a name of the stranger's may have been made to lead here, and `Origin`, where there is one, has
    to be a page of this server.

    Args:
        names: hosts that the server is reached by. password: user:password of HTTP's basic scheme; empty asks nobody.
    """

    def __init__(self, app: App, names: Iterable[str], password: str = "") -> None:
        self._app, self._names = app, frozenset(names)
        self._password = password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_probe = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in _PROBES
        host = headers.get(b"host", "")
        if not is_probe and _host(host) not in self._names:
            await _refuse(scope, send, 400, f"this server is not called {_host(host)!r}: see GPTPIPE_STACK_NAMES")
        elif b"origin" in headers and not self._is_own(headers[b"origin"], host):
            await _refuse(scope, send, 403, "a page of another server may not talk to this one")
        elif self._password and not is_probe and not self._knows(headers.get(b"authorization", "")):
            await _refuse(scope, send, 401, "user and password, please")
        else:
            await self._app(scope, receive, send)

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            page = urlsplit(origin)
            is_ours = page.scheme in ("http", "https") and _host(page.netloc) in self._names
            return is_ours and _port(page.netloc) == _port(host)
        except ValueError:
            return False

    def _knows(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            said = base64.b64decode(encoded, validate=True)
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(said, self._password)


def _host(address: str) -> str:
    """Of host:port, without the brackets of an IPv6 address; empty for what is none."""
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""


def _port(address: str) -> int | None:
    return urlsplit(f"//{address}").port


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":  # before it was accepted: the client sees a 403
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    content = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="gptpipe", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
