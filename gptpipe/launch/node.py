"""One node of a gang: joins the parent of a training, runs its ranks here, and ends when the parent is gone."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

from gptpipe import storage
from gptpipe.config import digest
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import UserError
from gptpipe.launch.channel import Channel, Invitation, Refused
from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.messages import (
    About,
    Ended,
    Kill,
    Line,
    Meet,
    Metrics,
    NodeCancelled,
    Ready,
    Refuse,
    Said,
    Stop,
    TakeJob,
)
from gptpipe.launch.signals import StopSignals
from gptpipe.launch.torchrun import Cancelled, Torchrun, Watchers
from gptpipe.launch.training import check_devices, prepare_folder, prepare_tokens
from gptpipe.version import __version__

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Said)
_CONNECT_SECONDS = 10
_LINES_A_SECOND = 50  # more would drown the flow run's log


class LinkLost(Exception):
    """The parent is gone or silent: the ranks here were ended, the last committed checkpoint stands."""


def join(
    invitation: Invitation,
    is_cancelled: Callable[[], bool],
    *,
    address: str | None = None,
    cache: TokenCache | None = None,
) -> Outcome:
    """Take part in one attempt of a training, until it has ended.

    Args:
        is_cancelled: whether a SIGTERM means cancel (do not save) rather than preemption of this host (save).
        address: where other nodes reach this one; by default the one on the route to the parent.
        cache: where decoded tokens are; by default this machine's.

    Raises:
        UserError: this machine cannot take part; the parent has been told.
        Cancelled: the parent, or whoever cancelled this node, has all ended without saving.
        LinkLost: the parent has not been heard of for five seconds.
    """
    channel = _connect(invitation, address)
    try:
        return _Node(channel, is_cancelled, cache or TokenCache()).run()
    except UserError as error:
        channel.send(Ended(outcome=_as_outcome(error)))
        raise
    except Cancelled:
        channel.send(NodeCancelled())
        raise
    finally:
        channel.close()


def about_this_node() -> About:
    """What a parent needs to know before it takes a node: versions, devices, clock."""
    import torch

    return About(
        name=socket.gethostname(),
        version=__version__,
        torch=torch.__version__.split("+")[0],
        python=platform.python_version(),
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        clock=time.time(),
    )


def interface_of(address: str) -> str:
    """The network interface that has an address.

    Raises:
        UserError: none has.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return str(name)
    raise UserError(
        f"no network interface of {socket.gethostname()} has this address",
        where=f"GPTPIPE_NODE_ADDRESS={address}",
        hint="leave it empty to take the one on the route to the parent",
    )


def _connect(invitation: Invitation, address: str | None) -> Channel:
    where = f"{invitation.host}:{invitation.port}"
    try:
        connection = socket.create_connection((invitation.host, invitation.port), _CONNECT_SECONDS)
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} cannot reach the training's parent ({error})",
            where=where,
            hint="on the parent's machine set GPTPIPE_GANG_ADDRESS to an address that its nodes reach, "
            "and let GPTPIPE_GANG_PORTS through",
        ) from None
    channel = Channel(connection)
    about = about_this_node()
    about.address = address or channel.address
    about.interface = interface_of(about.address)
    about.clock = time.time()
    try:
        channel.greet(invitation.token, about)
    except (Refused, OSError, ValueError) as error:
        channel.close()
        raise UserError(
            f"refused by the training's parent: {error}", where=where, hint="see the parent's log"
        ) from None
    channel.start()
    return channel


def _as_outcome(error: UserError) -> Outcome:
    told = error.as_dict()
    told["message"] = f"{socket.gethostname()}: {told['message']}"
    return Outcome(status="user_error", reason=f"{socket.gethostname()}: {error}", error=told)


class _Node:
    def __init__(self, channel: Channel, is_cancelled: Callable[[], bool], cache: TokenCache) -> None:
        self.channel, self.is_cancelled, self.cache = channel, is_cancelled, cache
        self._room, self._filled, self._left_out = float(_LINES_A_SECOND), time.monotonic(), 0

    def run(self) -> Outcome:
        job = self._prepared(self._wait_for(TakeJob).job)
        self.channel.send(Ready())
        rendezvous = self._wait_for(Meet).rendezvous
        ranks = Torchrun(
            job,
            Watchers(on_line=self._line, on_metrics=self._metrics, is_cancelled=self.is_cancelled),
            rendezvous=rendezvous,
            on_poll=self._poll,
        )
        outcome = ranks.run()
        self.channel.send(Ended(outcome=outcome, has_first_rank=(job.folder / "rank-0.pid").exists()))
        return outcome

    def _prepared(self, job: Job) -> Job:
        """The parent's job with this machine's folders, its dataset decoded here."""
        folder = storage.jobs_home() / f"{job.id[:12]}-{digest([job.training, os.getpid()])[:12]}"
        cache = {"cache": self.cache.home, "cache_bytes": self.cache.limit}
        here = job.model_copy(update={"folder": folder, "launcher": os.getpid(), **cache})
        check_devices(here.train)
        dataset = open_dataset(here.dataset)
        prepare_tokens(here.model, here.train, dataset, self.cache, here.read_news())
        prepare_folder(here)
        return here

    def _wait_for(self, kind: type[M]) -> M:
        """The parent's next message of this kind."""
        signals = StopSignals()
        with signals.caught():
            while True:
                for message in self._heard():
                    if isinstance(message, kind):
                        return message
                if signals.count:
                    raise Cancelled("stopped before the ranks were started")
                time.sleep(0.05)

    def _heard(self) -> list[Said]:
        """What the parent said; raises when it needs this node no more, or says nothing at all."""
        messages: list[Said] = []
        while not self.channel.received.empty():
            message = self.channel.received.get()
            if isinstance(message, Refuse):
                raise UserError(message.message, where=message.where, hint=message.hint)
            if isinstance(message, Kill):
                raise Cancelled(message.reason)
            messages.append(message)
        if self.channel.lost:
            raise LinkLost(f"the parent at {self.channel.peer} is {self.channel.lost}")
        return messages

    def _poll(self, ranks: Torchrun) -> None:
        for message in self._heard():
            if isinstance(message, Stop):
                ranks.preempt(message.reason)
        if ranks.signals.count > 1 or (ranks.signals.count and not ranks.stop_reason and self.is_cancelled()):
            raise Cancelled("this node was cancelled")
        if ranks.signals.count and not ranks.stop_reason:
            self.channel.send(Line(line=f"{ranks.signals.first}: this host goes away; saving"))
            ranks.preempt(f"{ranks.signals.first} on {socket.gethostname()}")

    def _line(self, line: str) -> None:
        """Pass a rank's line on; of more than `_LINES_A_SECOND` a second the rest is left out, and counted."""
        now = time.monotonic()
        self._room = min(_LINES_A_SECOND, self._room + (now - self._filled) * _LINES_A_SECOND)
        self._filled = now
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            line = f"({self._left_out:,} lines left out)\n{line}"
            self._left_out = 0
        self.channel.send(Line(line=line))

    def _metrics(self, lines: list[dict[str, Any]]) -> None:
        self.channel.send(Metrics(lines=lines))
