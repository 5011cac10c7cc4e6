"""Who is let in: requests by the server's own names, from its own pages, and, where it asks, with its password."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from gptpipe.config.settings import Settings
from gptpipe.guard import Guard, is_open, server_names

OWN = "http://10.0.0.1:4200"


async def inside(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def answer(password: str = "", path: str = "/", method: str = "GET", **headers: str) -> httpx.Response:
    guard = Guard(inside, {"10.0.0.1", "localhost", "127.0.0.1", "::1"}, password)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url=OWN) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["10.0.0.1", "10.0.0.1:4200", "LocalHost:4200", "127.0.0.1:4200", "[::1]:4200"])
def test_it_is_reached_by_its_names(host: str) -> None:
    assert answer(Host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "10.0.0.1.evil.com", "evil.com:4200", "10.0.0.2", "[::1", "", "10.0.0.1@evil.com"]
)
def test_it_is_reached_by_no_other(host: str) -> None:
    refused = answer(Host=host)
    assert refused.status_code == 400
    assert "GPTPIPE_STACK_NAMES" in refused.text


def test_who_watches_over_it_calls_it_by_any_address() -> None:
    assert answer(path="/health", Host="10.244.0.7:5000", password="a:b").status_code == 200
    assert answer(path="/health/../x", Host="10.244.0.7:5000").status_code == 400
    assert answer(path="/health", method="POST", Host="10.244.0.7:5000").status_code == 400


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (OWN, 200),
        ("http://localhost:4200", 200),
        ("http://evil.com", 403),
        ("http://10.0.0.1:9999", 403),
        ("http://10.0.0.1", 403),
        ("null", 403),
        ("file://10.0.0.1:4200", 403),
        ("http://10.0.0.1:x", 403),
        ("http://[::1", 403),
    ],
)
def test_only_its_own_pages_talk_to_it(origin: str, status: int, method: str) -> None:
    assert answer(method=method, Origin=origin, Host="10.0.0.1:4200").status_code == status


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("", 401),
        ("Basic dXNlcjpwYXNz", 200),  # user:pass
        ("basic dXNlcjpwYXNz", 200),
        ("Basic dXNlcjpwYXNzd29yZA==", 401),
        ("Basic dXNlcjo=", 401),
        ("Basic !!", 401),
        ("Bearer dXNlcjpwYXNz", 401),
    ],
)
def test_it_asks_for_its_password(said: str, status: int) -> None:
    found = answer("user:pass", **({"Authorization": said} if said else {}))
    assert found.status_code == status
    assert ("www-authenticate" in found.headers) == (status == 401)


@pytest.mark.parametrize(("origin", "kind"), [(OWN, "websocket.accept"), ("http://evil.com", "websocket.close")])
def test_a_web_socket_is_guarded_too(origin: str, kind: str) -> None:
    sent: list[Any] = []
    headers = [(b"host", b"10.0.0.1:4200"), (b"origin", origin.encode())]

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    guard = Guard(inside, {"10.0.0.1"})
    asyncio.run(guard({"type": "websocket", "path": "/", "headers": headers}, receive, send))
    assert sent == [kind]


def test_names_and_addresses_are_those_of_the_settings() -> None:
    assert server_names(Settings()) == {"127.0.0.1", "localhost", "::1"}
    named = Settings(stack_host="10.0.0.1", stack_names="GPT.example.com, other")
    assert server_names(named) >= {"10.0.0.1", "gpt.example.com", "other"}
    assert len(server_names(Settings(stack_host="0.0.0.0"))) > 4
    assert [is_open(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "myhost")] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
