"""What trainings reserve on the Prefect server: a machine, or a number of nodes, all at once or none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.storage.lease import lives, this_process
from gptpipe.wording import counted

log = logging.getLogger("gptpipe.flows")

AWAY = (httpx.HTTPError, PrefectHTTPStatusError)  # what is raised when the server does not answer, or not as it should
_NODES = "gptpipe-nodes"  # the concurrency limit: as many slots as there are nodes
_LEASE_SECONDS = 60.0  # after which the slots of a parent that was killed come free
_RENEW_SECONDS = 15.0
_ASK_SECONDS = 2.0
_SAY_SECONDS = 60.0
_LOCKED, _GONE = 423, 410


class Reservation:
    """Slots of a concurrency limit under a lease, renewed by a thread until they are given back.

    Prefect's own `concurrency` ends the run when a lease cannot be renewed, or goes on without it for good. A server
    that is away for some minutes must cost a training nothing, so here it is asked again until it answers, and what
    has expired meanwhile is reserved once more.
    """

    def __init__(self, name: str, slots: int) -> None:
        self._name, self._slots = name, slots
        self._lease: UUID | None = None
        self._ended = threading.Event()

    def take(self) -> bool:
        """All slots, or none: False when others hold them.

        Those of a process of this machine that is gone count as free.
        """
        return self._take() or (self._give_back_of_the_dead() and self._take())

    def _take(self) -> bool:
        with get_client(sync_client=True) as client:
            try:
                reply = client.increment_concurrency_slots_with_lease(
                    [self._name], self._slots, "concurrency", _LEASE_SECONDS
                )
            except PrefectHTTPStatusError as error:
                if error.response.status_code == _LOCKED:
                    return False
                raise
        self._lease = UUID(reply.json()["lease_id"])
        storage.write_json(str(self._note(self._lease)), {"lease": str(self._lease), **this_process()})
        return True

    def _note(self, lease: UUID | str) -> Path:
        """Who of this machine holds a lease; a process that was killed leaves it behind."""
        return storage.home() / "slots" / f"{self._name}-{lease}.json"

    def _give_back_of_the_dead(self) -> bool:
        """Whether slots came free that were held by processes of this machine that are gone."""
        free = False
        for path in self._note("").parent.glob(f"{self._name}-*.json"):
            with suppress(UserError, FileNotFoundError):  # its holder gives it back at this moment
                holder = storage.read_json(str(path))
                if lives(holder) is False:
                    self._give_back(UUID(holder["lease"]))
                    free = True
        return free

    def _give_back(self, lease: UUID) -> None:
        with suppress(*AWAY), get_client(sync_client=True) as client:  # a lease expires by itself
            client.release_concurrency_slots_with_lease(lease)
        self._note(lease).unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep them while the block runs, then give them back."""
        thread = threading.Thread(target=self._renew, name="slots", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(_ASK_SECONDS)
            if self._lease is not None:
                self._give_back(self._lease)

    def _renew(self) -> None:
        wait, warned = _RENEW_SECONDS, False
        while not self._ended.wait(wait):
            try:
                renewed = self._renewed() or self.take()
            except AWAY:
                wait = _ASK_SECONDS
                continue
            wait = _RENEW_SECONDS if renewed else _ASK_SECONDS
            if not renewed and not warned:
                warned = True
                log.warning("train: while the Prefect server was away, another training has taken the same machines")

    def _renewed(self) -> bool:
        """False when the lease has expired."""
        if self._lease is None:
            return False
        with get_client(sync_client=True) as client:
            try:
                client.renew_concurrency_lease(self._lease, _LEASE_SECONDS)
            except PrefectHTTPStatusError as error:
                if error.response.status_code != _GONE:
                    raise
                self._note(self._lease).unlink(missing_ok=True)
                self._lease = None
                return False
        return True


@contextmanager
def machine(name: str) -> Iterator[None]:
    """One training in place at a time: two would share its GPUs, its cores and its memory."""
    limit = f"gptpipe-machine-{name}"
    with get_client(sync_client=True) as client:
        _set_limit(client, limit, 1)
    said, reservation = False, Reservation(limit, 1)
    while not reservation.take():
        if not said:
            log.info("train: waiting until another training on this machine has ended")
            said = True
        time.sleep(_ASK_SECONDS)
    with reservation.held():
        yield


@contextmanager
def nodes(
    most: int, least: int, poll: Callable[[], None], available: Callable[[], int], missing: Callable[[], str]
) -> Iterator[int]:
    """All of them at once, so that two trainings never hold half of what each needs.

    Args:
        poll: called while it waits; may raise.
        available: how many nodes there are, whether held or not.
        missing: why there may be fewer than `least`, and what to do.

    Returns:
        How many are held, from `least` to `most`.
    """
    said = 0.0
    while True:
        poll()
        try:
            there = available()
            if there < least:
                reason = missing()
            else:
                with get_client(sync_client=True) as client:
                    _set_limit(client, _NODES, there)
                count = min(most, there)
                reservation = Reservation(_NODES, count)
                if reservation.take():
                    break
                reason = f"other trainings hold them; {counted(there, 'node')} in all"
        except AWAY as error:
            reason = f"the Prefect server does not answer ({type(error).__name__})"
        if not said or time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            log.warning("train: waiting for %s: %s", counted(least, "node"), reason)
        time.sleep(_ASK_SECONDS)
    with reservation.held():
        yield count


def _set_limit(client: SyncPrefectClient, name: str, limit: int) -> None:
    try:
        if client.read_global_concurrency_limit_by_name(name).limit == limit:
            return
    except ObjectNotFound:
        pass
    with suppress(PrefectHTTPStatusError):  # another training made it at the same moment
        client.upsert_global_concurrency_limit_by_name(name, limit)
