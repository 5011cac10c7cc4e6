"""The link between the parent of a gang and one node: JSON objects over TCP, and a heartbeat both ways.

A cut link sends no reset, and TCP alone notices it after minutes. So each side says something every second, and
gives the other up after five seconds of silence.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import secrets
import socket
import threading
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gptpipe.launch.messages import MESSAGE, About, Said

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 5.0
_LONGEST_GREETING = 1 << 20  # bytes; whoever has not shown the token yet is not listened to for longer
_LONGEST = 1 << 28


class Invitation(BaseModel):
    """How a node finds its parent, and shows that it belongs to this attempt."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(description="Address of the training's parent")
    port: int = Field(description="Its port")
    attempt: int = Field(description="Number of the attempt, from 1")
    token: str = Field(description="Drawn for this attempt")
    training: str = Field(description="URL of the training's folder")


class Refused(Exception):
    """The other side showed no valid token, or did not take this one."""


class Channel:
    """One end of the link. `lost` says why it is no more; empty while it stands. `received` holds messages.

    Sending never raises and receiving never waits: whoever polls `received` looks at `lost` too.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self.received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.lost = ""
        self.address: str = connection.getsockname()[0]
        self.peer: str = connection.getpeername()[0]

    def invite(self, token: str) -> About:
        """The parent's half of the greeting: what a node that knows the token says about itself.

        Raises:
            Refused: it does not know the token.
            OSError, ValueError: it says nothing, or nothing that can be read.
        """
        challenge = secrets.token_hex(16)
        self._write({"challenge": challenge})
        about = self._read(_LONGEST_GREETING)
        if not hmac.compare_digest(str(about.pop("answer", "")), _answer(token, "node", challenge)):
            self._write({"refused": {"message": "this attempt is over, or the token is another one"}})
            raise Refused(f"{self.peer} does not know this attempt's token")
        self._write({"answer": _answer(token, "parent", str(about.pop("challenge", "")))})
        return About.model_validate(about)

    def greet(self, token: str, about: About) -> None:
        """The node's half.

        Raises:
            Refused: the parent does not take this node, or is not the one that sent the invitation.
            OSError, ValueError: it says nothing, or nothing that can be read.
        """
        challenge = secrets.token_hex(16)
        asked = self._read(_LONGEST_GREETING)
        answer = _answer(token, "node", str(asked.get("challenge")))
        self._write({**about.model_dump(mode="json"), "challenge": challenge, "answer": answer})
        reply = self._read(_LONGEST_GREETING)
        if "refused" in reply:
            raise Refused(str(reply["refused"]["message"]))
        if not hmac.compare_digest(str(reply.get("answer", "")), _answer(token, "parent", challenge)):
            raise Refused("whoever listens there does not know this attempt's token")

    def start(self) -> None:
        """Begin to receive, and to say every second that this side lives."""
        for work in (self._receive, self._beat):
            threading.Thread(target=work, name="gang-link", daemon=True).start()

    def send(self, message: Said) -> None:
        """Give a message to the other side, unless the link is lost."""
        try:
            self._write(message.model_dump(mode="json"))
        except OSError as error:
            self._give_up(_reason(error))

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _write(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._connection.sendall(line)

    def _read(self, longest: int) -> dict[str, Any]:
        line = self._file.readline(longest)
        if not line.endswith(b"\n"):
            raise ConnectionResetError("closed by the other side" if len(line) < longest else "too long a message")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message

    def _receive(self) -> None:
        try:
            while True:
                message = self._read(_LONGEST)
                if message:  # an empty one is a heartbeat
                    self.received.put(MESSAGE.validate_python(message))
        except (OSError, ValueError) as error:
            self._give_up(_reason(error))

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS) and not self.lost:
            try:
                self._write({})
            except OSError as error:
                self._give_up(_reason(error))

    def _give_up(self, reason: str) -> None:
        if not self._closed.is_set():
            self.lost = self.lost or reason


def _answer(token: str, side: str, challenge: str) -> str:
    return hmac.new(token.encode(), f"{side} {challenge}".encode(), hashlib.sha256).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"silent for {SILENCE_SECONDS:g} s"
    return "closed by the other side" if isinstance(error, ConnectionError) else str(error)
