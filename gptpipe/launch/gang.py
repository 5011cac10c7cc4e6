"""The parent of a gang: gathers nodes for one training, owns their rendezvous, and sees all of them end together.

Nodes are other processes (`gptpipe.node`), on other machines. Each attempt has a token and a number, so that a
node which comes back from an old one is refused; what one attempt has saved, the next goes on from.
"""

from __future__ import annotations

import logging
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from gptpipe.errors import UserError
from gptpipe.launch.attempts import Tries, metrics_before, place_of, records_of, step_of
from gptpipe.launch.channel import Channel, Invitation, Refused
from gptpipe.launch.hosts import Hosts
from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.members import Member, check_member
from gptpipe.launch.messages import (
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
from gptpipe.launch.network import listen, rendezvous_store
from gptpipe.launch.signals import StopSignals
from gptpipe.launch.torchrun import Cancelled, Rendezvous, Watchers
from gptpipe.wording import counted

log = logging.getLogger(__name__)

_POLL = 0.1
_LATE_SECONDS = 30.0  # after which `min_nodes` are enough, and missing ones are named
_SETTLE_SECONDS = 2.0  # in which the other nodes tell what they saw of a failure
_TOLD_SECONDS = 3.0  # in which what started a node may tell why it is gone
_CONNECTION = re.compile(r"connection (closed|reset|refused)|gloo|nccl|ProcessGroup|DistBackend|Broken pipe", re.I)


def train_on_nodes(next_job: Callable[[], Job], hosts: Hosts, watchers: Watchers) -> Outcome:
    """Attempts, each from the newest checkpoint, until one finishes or the user has to do something.

    Args:
        next_job: what to train from now on.

    Raises:
        Cancelled: nothing was saved; no rank is left anywhere.
    """
    signals = StopSignals()
    tries, attempt = Tries(), 0

    def poll() -> None:
        _heed(signals, watchers)
        if signals.count:
            raise _Preempted(signals.first)

    with signals.caught():
        while True:
            attempt += 1
            config = next_job().train
            try:
                with hosts.nodes(config.nodes, config.min_nodes or config.nodes, poll) as nodes:
                    least = min(nodes, config.min_nodes or nodes)
                    gang = Gang(next_job(), nodes, least, attempt, hosts, watchers, signals)
                    outcome = gang.run()
            except _Preempted as stopped:
                return Outcome(status="preempted", reason=str(stopped), step=step_of(next_job().resume))
            # a node that goes away by itself is replaced; a stop of the whole training is the caller's
            whole = gang.stopped or outcome.reason.startswith("train.max_hours")
            if outcome.status in ("finished", "user_error") or (outcome.status == "preempted" and whole):
                return outcome
            newest = next_job().resume
            if tries.are_spent(newest, failed=outcome.status == "failed"):
                return outcome
            log.warning(
                "attempt %d ended: %s; once more from %s",
                attempt,
                outcome.reason,
                place_of(newest),
            )


class _Preempted(Exception):
    """Asked to stop while it waited for nodes."""


def _heed(signals: StopSignals, watchers: Watchers) -> None:
    """A second signal cancels; so does the first when the run was cancelled."""
    if signals.count > 1 or watchers.was_cancelled() or (signals.count and watchers.is_cancelled()):
        raise Cancelled("cancelled; the last committed checkpoint stands")


class Gang:
    """One attempt: a number of nodes, one rendezvous.

    Args:
        least: how many nodes are enough when the others do not come.
        attempt: its number, from 1.
        signals: those that ask the whole training to stop.

    Attributes:
        members: the nodes that have joined.
        stopped: the signal by which the parent itself was asked to stop; empty if it was not.
    """

    def __init__(
        self, job: Job, nodes: int, least: int, attempt: int, hosts: Hosts, watchers: Watchers, signals: StopSignals
    ) -> None:
        self.job, self.hosts, self.watchers = job, hosts, watchers
        self.members: list[Member] = []
        self.stopped = ""
        self._nodes, self._least, self._attempt, self._signals = nodes, least, attempt, signals
        self._token = secrets.token_hex(16)
        self._joining: list[Member] = []  # let in by a thread of the door's, not taken in yet
        self._started = False

    def run(self) -> Outcome:
        """Gather the nodes, start them together, and stay until all have ended.

        Raises:
            Cancelled: no rank is left.
        """
        address = self.hosts.address
        door, store_socket = (listen(address, self.hosts.ports) for _ in range(2))
        endpoint = f"{address}:{store_socket.getsockname()[1]}"
        store = rendezvous_store(address, store_socket)
        threading.Thread(target=self._let_in, args=(door,), name="gang-door", daemon=True).start()
        invitation = Invitation(
            host=address,
            port=door.getsockname()[1],
            attempt=self._attempt,
            token=self._token,
            training=self.job.training,
        )
        reason, vanished = "this attempt is over", False
        try:
            self.hosts.start(invitation, self._nodes)
            outcome = self._gather() or self._follow_from(endpoint)
            reason = outcome.reason or reason
            vanished = any(m.channel.lost and m.outcome is None for m in self.members)
        except Cancelled:
            reason = "the training was cancelled"
            raise
        finally:
            with suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)
            door.close()
            for member in self.members:
                if member.outcome is None:
                    member.channel.send(Kill(reason=reason))
            self._wait_until_closed()
            if vanished and (cause := self._cause()):
                outcome.reason += f": {cause}"
            self.hosts.end()
            for member in [*self.members, *self._joining]:
                member.channel.close()
            del store
        return outcome

    def _gather(self) -> Outcome | None:
        """Until all are ready, or enough; an outcome if it comes to nothing."""
        begun = named = time.monotonic()
        while True:
            self._hear()
            if self._signals.count:
                self.stopped = self._signals.first
                return Outcome(status="preempted", reason=self.stopped, step=step_of(self.job.resume))
            if bad := next((m.outcome for m in self.members if m.outcome), None):
                return bad
            if gone := [m for m in self.members if m.channel.lost]:
                return Outcome(status="failed", reason=f"node {gone[0].name} is {gone[0].channel.lost}")
            ready = [m for m in self.members if m.ready]
            late = time.monotonic() - begun > _LATE_SECONDS
            if len(ready) == self._nodes or (late and len(ready) >= self._least and len(ready) == len(self.members)):
                break
            if (ended := self.hosts.problem()) is not None:
                return ended
            if time.monotonic() - named > _LATE_SECONDS:
                named = time.monotonic()
                names = ", ".join(m.name for m in self.members) or "none"
                log.warning(
                    "waiting for nodes: %d of %d (%s); %s", len(ready), self._nodes, names, self.hosts.missing()
                )
            time.sleep(_POLL)
        if len(ready) < self._nodes:
            log.warning("going on with %s of %d", counted(len(ready), "node"), self._nodes)
        self.members.sort(key=lambda m: (m.about.name, m.about.address))
        log.info("training on %s: %s", counted(len(ready), "node"), ", ".join(m.name for m in self.members))
        self._started = True
        return None

    def _follow_from(self, endpoint: str) -> Outcome:
        """Have the nodes meet at the store, and follow them to their ends."""
        self.watchers.on_start(self.job)
        if before := metrics_before(self.job):
            self.watchers.on_metrics(records_of(before))
        for node, member in enumerate(self.members):
            about = member.about
            place = Rendezvous(endpoint, node, len(self.members), about.address, about.interface)
            member.channel.send(Meet(rendezvous=place))
        return self._follow()

    def _follow(self) -> Outcome:
        """Until every node has told how it ended, or one is lost."""
        settled: float | None = None
        told = False
        while True:
            self._hear()
            if self._signals.count and not told:
                told, self.stopped = True, self._signals.first
                log.warning("%s: finishing the step and saving; once more to stop without saving", self.stopped)
                for member in self.members:
                    member.channel.send(Stop(reason=self.stopped))
            lost = [m for m in self.members if m.channel.lost and m.outcome is None]
            failed = [m for m in self.members if m.outcome and m.outcome.status in ("failed", "user_error")]
            if lost and not failed:
                return Outcome(status="failed", reason=f"node {lost[0].name} is {lost[0].channel.lost}")
            ended = all(m.outcome or m.channel.lost for m in self.members)
            if failed and settled is None:
                settled = time.monotonic() + _SETTLE_SECONDS
            if ended or (settled and time.monotonic() > settled):
                return self._merged()
            time.sleep(_POLL)

    def _cause(self) -> str:
        until = time.monotonic() + _TOLD_SECONDS
        while not (cause := self.hosts.cause()) and time.monotonic() < until:
            time.sleep(5 * _POLL)
        return cause

    def _merged(self) -> Outcome:
        """What rank 0 says when all went well, else the first cause: lost connections are only its echo."""
        bad = [m.outcome for m in self.members if m.outcome and m.outcome.status in ("failed", "user_error")]
        if bad:
            bad.sort(key=lambda o: (o.status != "user_error", bool(_CONNECTION.search(o.reason + o.traceback[-2000:]))))
            return bad[0]
        first = [m.outcome for m in self.members if m.outcome and m.has_first_rank]
        return first[0] if first else Outcome(status="failed", reason="rank 0 ended without a word")

    def _hear(self) -> None:
        """Take in new nodes and what all have said; raise when the run was cancelled."""
        asked = self._signals.count and not self.stopped
        if self._signals.count > 1 or self.watchers.was_cancelled() or (asked and self.watchers.is_cancelled()):
            raise Cancelled(self.job.cancelled())
        while self._joining:
            self._take(self._joining.pop(0))
        for member in self.members:
            while not member.channel.received.empty():
                self._handle(member, member.channel.received.get())

    def _handle(self, member: Member, message: Said) -> None:
        match message:
            case Line(line=line):
                self.watchers.on_line(line)
            case Metrics(lines=lines):
                self.watchers.on_metrics(lines)
            case Ready():
                member.ready = True
            case Ended(outcome=outcome, has_first_rank=has_first_rank):
                member.outcome, member.has_first_rank = outcome, has_first_rank
            case NodeCancelled():
                raise Cancelled(f"node {member.name} was cancelled; the last committed checkpoint stands")

    def _take(self, member: Member) -> None:
        """Give a node its job, or say why it cannot have it."""
        if self._started or len(self.members) == self._nodes:
            member.channel.send(Refuse(message="all nodes are here", hint="nothing to do"))
            return
        self.members.append(member)
        try:
            check_member(member.about, [m.about for m in self.members[:-1]], self.job)
        except UserError as error:
            member.channel.send(Refuse(**error.as_dict()))
            member.outcome = Outcome(status="user_error", reason=str(error), error=error.as_dict())
            return
        log.info("node %s has joined: %d of %d", member.name, len(self.members), self._nodes)
        member.channel.send(TakeJob(job=self.job))

    def _let_in(self, door: socket.socket) -> None:
        """Greet whoever calls, each in a thread of its own: one that says nothing keeps nobody waiting."""
        while True:
            try:
                connection, _ = door.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._greet, args=(connection,), name="gang-greeting", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            channel = Channel(connection)
            about = channel.invite(self._token)
            about.skew = about.clock - time.time()
            channel.start()
            self._joining.append(Member(channel, about))
        except Refused as error:
            log.warning("refused: %s", error)
            connection.close()
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()

    def _wait_until_closed(self) -> None:
        """Nodes close the link when their last rank is gone."""
        until = time.monotonic() + 5
        while time.monotonic() < until and any(not m.channel.lost for m in self.members):
            time.sleep(0.02)
