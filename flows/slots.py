"""What trainings reserve on the Prefect server: a machine, or so many nodes, all at once or none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from gptpipe.wording import counted

log = logging.getLogger("gptpipe.flows")

_NODES = "gptpipe-nodes"  # the concurrency limit: as many slots as there are nodes
_LEASE_SECONDS = 60  # after which the slots of a parent that was killed come free
_ASK_SECONDS = 2.0
_SAY_SECONDS = 60.0


@contextmanager
def machine(name: str) -> Iterator[None]:
    """One training in place at a time: two would share its GPUs, its cores and its memory."""
    limit = f"gptpipe-machine-{name}"
    with get_client(sync_client=True) as client:
        _set_limit(client, limit, 1)
    said = False
    with ExitStack() as held:
        while not _hold(held, limit, 1):
            if not said:
                log.info("train: waiting until another training on this machine has ended")
                said = True
        yield


@contextmanager
def nodes(
    wanted: int, least: int, poll: Callable[[], None], available: Callable[[], int], missing: Callable[[], str]
) -> Iterator[int]:
    """All of them at once, so that two trainings never hold half of what each needs.

    Args:
        poll: called while it waits; may raise.
        available: how many nodes there are, whether held or not.
        missing: why there may be fewer than `least`, and what to do.

    Returns:
        How many are held, from `least` to `wanted`.
    """
    said = 0.0
    with ExitStack() as held:
        while True:
            poll()
            there = available()
            count = min(wanted, there)
            if there < least:
                reason = missing()
                time.sleep(_ASK_SECONDS)
            else:
                with get_client(sync_client=True) as client:
                    _set_limit(client, _NODES, there)
                if _hold(held, _NODES, count):
                    break
                reason = f"other trainings hold them; {counted(there, 'node')} in all"
            if not said or time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                log.warning("train: waiting for %s: %s", counted(least, "node"), reason)
        yield count


def _hold(held: ExitStack, name: str, slots: int) -> bool:
    """Take slots of a concurrency limit, all of them or none."""
    try:
        held.enter_context(
            concurrency(name, slots, timeout_seconds=_ASK_SECONDS, lease_duration=_LEASE_SECONDS, strict=True)
        )
    except TimeoutError:
        return False
    return True


def _set_limit(client: SyncPrefectClient, name: str, limit: int) -> None:
    try:
        if client.read_global_concurrency_limit_by_name(name).limit == limit:
            return
    except ObjectNotFound:
        pass
    with suppress(PrefectHTTPStatusError):  # another training made it at the same moment
        client.upsert_global_concurrency_limit_by_name(name, limit)
