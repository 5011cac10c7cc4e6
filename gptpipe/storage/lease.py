"""One writer at a time: a renewable lease on a folder, as an object in it that names its holder."""

from __future__ import annotations

import getpass
import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Pydantic takes Python's own from 3.12 on

from gptpipe import storage
from gptpipe.errors import Damaged, UserError
from gptpipe.processes import is_running, machine_start, start_of

log = logging.getLogger(__name__)
NAME = "lease.json"
LIFETIME = 60.0  # seconds without renewal after which a lease is over
RENEW_EVERY = 15.0
_SETTLE = 1.0  # how long a taken-over lease must stand on a store without compare-and-swap


class _Holder(TypedDict):
    token: str
    user: str
    host: str
    space: str
    pid: int
    boot: NotRequired[str]  # leases of earlier versions have none, and a start by the clock
    started: float
    until: float


_HOLDER: TypeAdapter[_Holder] = TypeAdapter(_Holder)


class Held(UserError):
    """Another process holds the lease."""


class Lease:
    """Hold a folder while the block runs.

    A holder on this machine that no longer lives is replaced at once. One elsewhere is replaced when its lease is over,
    and has not been renewed while one looked on: clocks of two machines may differ.

    Raises:
        Held: on entering, another process holds it; the holder is named.
    """

    def __init__(self, folder: str) -> None:
        self.url = storage.join(folder, NAME)
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        if not storage.create_exclusive(self.url, self._content()):
            holder = None
            with suppress(Damaged):  # what says of nobody that he holds it holds no writer off
                holder = _holder(self.url)
            # its own one, where the store did it but the answer was lost, and its client asked again
            is_own = holder is not None and holder["token"] == self._token
            if holder is not None and not is_own and _renews(self.url, holder):
                who = f"{holder['user']}@{holder['host']} (process {holder['pid']})"
                raise Held(
                    f"{who} is writing here",
                    where=storage.parent(self.url),
                    hint="wait until it ends, or stop it; a dead holder's lease is over after a minute and a half",
                )
            storage.write_bytes(self.url, self._content())
            time.sleep(_SETTLE)
            now = _holder(self.url)
            if now is None or now["token"] != self._token:
                raise Held(
                    "another process took over at the same moment",
                    where=storage.parent(self.url),
                    hint="wait until it ends",
                )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(RENEW_EVERY)
        try:
            now = _holder(self.url)
            if now is not None and now["token"] == self._token:
                storage.remove(self.url)
        except (UserError, OSError) as problem:
            log.warning("the lease could not be given back (%s); it is over in a minute and a half", problem)

    def _content(self) -> bytes:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        holder = {
            "token": self._token,
            "user": user,
            **this_process(),
            "until": time.time() + LIFETIME,
        }
        return json.dumps(holder).encode()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_EVERY):
            try:
                now = _holder(self.url)
                if now is not None and now["token"] != self._token:
                    log.error("%s: another process took over, this one was not heard of for a minute", self.url)
                    return
                storage.write_bytes(self.url, self._content())
            except (UserError, OSError) as problem:
                log.warning("the lease could not be renewed (%s)", problem)


def is_held(folder: str) -> bool:
    """Whether some process writes in this folder now; yes where its lease cannot be read."""
    try:
        holder = _holder(storage.join(folder, NAME))
    except UserError:
        return True
    return holder is not None and _holds(holder)


def _holder(url: str) -> dict[str, Any] | None:
    """What a lease says of its holder; None where there is none.

    Raises:
        Damaged: it is not one that was written here.
    """
    try:
        return dict(_HOLDER.validate_python(storage.read_json(url)))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise Damaged("not a lease", where=url, hint="remove it if nobody writes there") from None


def this_process() -> dict[str, Any]:
    """What `lives` knows this process by."""
    return {
        "host": socket.gethostname(),
        "space": _pid_space(),
        "pid": os.getpid(),
        "boot": machine_start(),
        "started": start_of(os.getpid()),
    }


def lives(process: dict[str, Any]) -> bool | None:
    """Whether what `this_process` described still runs; None where that cannot be seen from here.

    Containers can share a host's name and a folder, and have process ids of their own.
    """
    if (process["host"], process.get("space")) != (socket.gethostname(), _pid_space()):
        return None
    boot = process.get("boot")
    if boot is not None and boot != machine_start():
        return None  # before this machine was started again, or on another one of its name
    return is_running(process["pid"], process["started"] if boot is not None else None)


def _pid_space() -> str:
    """What process ids are counted in: a container has a space of its own."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _holds(holder: dict[str, Any]) -> bool:
    """Whether somebody holds it, as far as one look tells."""
    alive = lives(holder)
    return bool(time.time() < holder["until"]) if alive is None else alive


def _renews(url: str, holder: dict[str, Any]) -> bool:
    """Whether somebody holds it: where the clocks tell nothing, whether it is renewed in the next half minute."""
    alive = lives(holder)
    if alive is not None:
        return alive
    if 0 < holder["until"] - time.time() <= LIFETIME:
        return True
    log.info("%s: the lease of %s is over; is it renewed?", url, holder["host"])
    until = time.monotonic() + 2 * RENEW_EVERY
    while time.monotonic() < until:
        time.sleep(min(1.0, RENEW_EVERY))
        with suppress(Damaged):
            now = _holder(url)
            if now is None:
                return False
            if (now["token"], now["until"]) != (holder["token"], holder["until"]):
                return True
    return False
