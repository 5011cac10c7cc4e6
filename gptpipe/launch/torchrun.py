"""torchrun as a child process: starts the ranks of one node, relays what they say, and sees them end.

torchrun turns every exit code into 1 and kills ranks 30 s after a SIGTERM. So it is started deaf to signals:
what runs it signals the ranks itself, and reads how they ended from `outcome.json`.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, ClassVar, Protocol

import psutil

from gptpipe.errors import UserError
from gptpipe.launch.job import METRICS, OUTCOME, RANK_LINE, Job, Outcome
from gptpipe.launch.memory_kills import memory_figures, memory_kills
from gptpipe.launch.metrics import MetricsFollower
from gptpipe.launch.network import listen, rendezvous_store
from gptpipe.launch.signals import STOP_SIGNALS, StopSignals, send_signal

log = logging.getLogger(__name__)

_POLL = 0.1  # seconds
_ASK_SECONDS = 1.0
_HERE = "127.0.0.1"


class Cancelled(BaseException):
    """The training was cancelled: nothing was saved, the last committed checkpoint stands."""


class RankedJob(Protocol):
    """What ranks are started for.

    Attributes:
        module: what each runs, with the path of the job's file, `<folder>/job.json`.
        folder: the job's local folder, with outcome.json and the ranks' pids.
        threads: of each rank; 0 is one. save_timeout: seconds that ranks have to end after they were asked to.
    """

    module: ClassVar[str]
    folder: Path

    @property
    def nproc(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def save_timeout(self) -> float: ...
    def cancelled(self) -> str: ...
    def unsaved(self, reason: str) -> Outcome: ...


@dataclass
class Watchers:
    """What the caller is told while ranks run. All are called from the launcher's own thread.

    Attributes:
        on_start: the job, before any rank is started.
        on_line: a line that a rank printed.
        on_metrics: the lines of metrics.jsonl, each once, beginning with those from before a resume.
        is_cancelled: whether a SIGTERM means cancel (do not save) rather than preemption (save); may take a moment.
        was_cancelled: whether the run is known to have been cancelled; asked all the time, and answers at once.
        stop_reason: why the ranks are to save and end, empty while they are not; asked all the time, on one machine.
    """

    on_start: Callable[[Job], None] = lambda job: None
    on_line: Callable[[str], None] = log.info
    on_metrics: Callable[[list[dict[str, Any]]], None] = lambda lines: None
    is_cancelled: Callable[[], bool] = lambda: False
    was_cancelled: Callable[[], bool] = lambda: False
    stop_reason: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Rendezvous:
    """Where the launchers of several nodes meet.

    Attributes:
        endpoint: host:port of the store, which lives in the parent.
        node: which one this is, from 0. nodes: how many there are.
        address: of this node, where ranks of other nodes reach it.
        interface: the network interface with that address, for NCCL and gloo.
    """

    endpoint: str
    node: int
    nodes: int
    address: str
    interface: str


def torchrun_command(job: RankedJob, rendezvous: Rendezvous) -> list[str]:
    """torchrun as one node of several, or as the only one."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={job.nproc}",
        f"--nnodes={rendezvous.nodes}",
        "--rdzv-backend=gptpipe",
        f"--rdzv-endpoint={rendezvous.endpoint}",
        f"--rdzv-conf=node={rendezvous.node},launcher={os.getpid()}",
        f"--local-addr={rendezvous.address}",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        f"--log-dir={job.folder / 'torchelastic'}",  # else it leaves a folder in the one for temporary files
        "--signals-to-handle=SIGQUIT",
        "-m",
        job.module,
        str(job.folder / "job.json"),
    ]


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Torchrun:
    """One start of torchrun on this machine, from its first rank to its last.

    Args:
        rendezvous: where it meets the other nodes; None if it is the only one.
        on_poll: called ten times per second; may call `preempt`, or raise to end all ranks at once.
        variables: of the ranks' environment, before those of this process.
    """

    def __init__(
        self,
        job: RankedJob,
        watchers: Watchers,
        *,
        rendezvous: Rendezvous | None = None,
        on_poll: Callable[[Torchrun], None] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.job, self.watchers, self.rendezvous = job, watchers, rendezvous
        self.stop_reason = ""
        self._variables = dict(variables or {})
        self._on_poll = on_poll or _heed_signals
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_lines: list[str] = []
        self.signals = StopSignals()
        self._preempt_until, self._ask_at = float("inf"), 0.0

    def run(self) -> Outcome:
        """Start the ranks and stay until the last has ended.

        Raises:
            Cancelled: stopped without saving. No rank is left, whatever is raised.
        """
        follower = MetricsFollower(self.job.folder / METRICS)
        environment = {
            **os.environ,
            **self._variables,
            "OMP_NUM_THREADS": str(self.job.threads or 1),
            "PYTHONUNBUFFERED": "1",
            "TORCHELASTIC_ERROR_FILE": str(self.job.folder / "torchelastic.json"),
            "PYTHONSAFEPATH": "1",  # nothing of the current folder is imported
        }
        kills = memory_kills()
        if self.rendezvous:
            follower.poll()  # what a resumed run has behind it: the parent knows
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                environment.setdefault(name, self.rendezvous.interface)
        with self.signals.caught(), self._meeting() as place:
            self.process = subprocess.Popen(
                torchrun_command(self.job, place),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=_ignore_signals,
            )
            reader = threading.Thread(target=self._read_lines, name="rank-lines", daemon=True)
            reader.start()
            try:
                while self.process.poll() is None:
                    self._relay(follower)
                    self._on_poll(self)
                    self._ask_to_stop()
                    if time.monotonic() > self._preempt_until:
                        log.warning("not ended within %g s: killed", self.job.save_timeout)
                        self.kill()
                    time.sleep(_POLL)
                reader.join(2)
                self._relay(follower)
            finally:
                self.kill()
        return self._outcome(memory_kills() - kills)

    @contextmanager
    def _meeting(self) -> Iterator[Rendezvous]:
        """Where torchrun finds the store: the parent's, or where it is the only one, this process's own."""
        if not distribution("gptpipe").entry_points.select(group="torchrun.handlers"):
            raise UserError("was updated, and not installed again", where="gptpipe", hint="`pip install -e .` there")
        if self.rendezvous:
            yield self.rendezvous
            return
        listening = listen(_HERE, range(1))
        endpoint = f"{_HERE}:{listening.getsockname()[1]}"
        store = rendezvous_store(_HERE, listening)
        try:
            yield Rendezvous(endpoint, node=0, nodes=1, address=_HERE, interface="")
        finally:
            del store

    def preempt(self, reason: str) -> None:
        """Ask the ranks to finish their step, save and end; after the job's `save_timeout` they are killed."""
        if self.stop_reason:
            return
        self.stop_reason = reason
        self._preempt_until = time.monotonic() + self.job.save_timeout
        self._ask_at = 0.0

    def _ask_to_stop(self) -> None:
        """Signal every rank, once a second: one that is only starting ignores it, as torchrun does."""
        if self.stop_reason and time.monotonic() > self._ask_at:
            self._ask_at = time.monotonic() + _ASK_SECONDS
            for process in self._ranks():
                send_signal(process, signal.SIGTERM)

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def _relay(self, follower: MetricsFollower) -> None:
        while not self._lines.empty():
            line = self._lines.get()
            self._last_lines = [*self._last_lines[-200:], line]
            if line.startswith(RANK_LINE):
                self.watchers.on_line(line.removeprefix(RANK_LINE))
            else:  # torchrun's own reports and libraries' chatter: the outcome says better what happened
                log.debug("%s", line)
        if records := follower.poll():
            self.watchers.on_metrics(records)

    def _ranks(self) -> list[psutil.Process]:
        """The ranks' processes: torchrun's descendants (each in a session of its own)."""
        try:
            return [
                p for p in psutil.Process(self.process.pid).children(recursive=True) if self.job.module in p.cmdline()
            ]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return []

    def kill(self) -> None:
        """End everything now. Nothing is left behind, whatever state it is in."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for path in self.job.folder.glob("rank-*.pid"):  # ranks whose torchrun is gone
            try:
                orphan = psutil.Process(int(path.read_text()))
                if self.job.module in orphan.cmdline():
                    family.append(orphan)
            except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
                continue
        if self.process.poll() is None:
            self.process.kill()
        for process in family:
            send_signal(process, signal.SIGKILL)
        psutil.wait_procs(family, timeout=5)
        self.process.wait()

    def _outcome(self, for_memory: int) -> Outcome:
        """How it ended: a rank that was killed explains why the others failed, and says nothing itself.

        Args:
            for_memory: how many processes were killed for lack of memory meanwhile.
        """
        if self.rendezvous and self.process.returncode == 0 and not (self.job.folder / OUTCOME).exists():
            return Outcome(status="finished", reason="rank 0, on another node, knows more")
        written = [self.job.folder / OUTCOME, *sorted(self.job.folder.glob("outcome-*.json"))]
        outcomes = [outcome for path in written if (outcome := Outcome.read(str(path))) is not None]
        # the first to fail is the cause; the other ranks only lost their connection to it
        outcomes.sort(key=lambda outcome: ("finished", "preempted", "user_error", "failed").index(outcome.status))
        if outcomes and outcomes[0].status != "failed":
            return outcomes[0]
        if killed := _killed_by_signal(self._last_lines):
            if for_memory:
                killed += f": memory ran out ({memory_figures()})"
            trace = outcomes[0].traceback if outcomes else ""
            return Outcome(status="failed", reason=killed, traceback=trace, killed=not self.stop_reason)
        if outcomes:
            return outcomes[0]
        if self.stop_reason:
            return self.job.unsaved(self.stop_reason)
        if (number := -self.process.returncode) > 0:
            return Outcome(status="failed", reason=f"torchrun was killed by signal {number}", killed=True)
        reason = f"the ranks ended before they could say why; last: {last_words(self._last_lines)}"
        return Outcome(status="failed", reason=reason, traceback="\n".join(self._last_lines))


def _heed_signals(run: Torchrun) -> None:
    """The first signal preempts, the second cancels; so does the first when the run was cancelled."""
    asked = run.signals.count and not run.stop_reason
    if run.signals.count > 1 or run.watchers.was_cancelled() or (asked and run.watchers.is_cancelled()):
        raise Cancelled(run.job.cancelled())
    if asked:
        log.warning("%s: finishing the step and saving; once more to stop without saving", run.signals.first)
        run.preempt(run.signals.first)
    elif reason := run.watchers.stop_reason():
        run.preempt(reason)


def _killed_by_signal(lines: list[str]) -> str:
    """What torchrun's report says of a rank that a signal ended, in a person's words; empty if there is none."""
    report = "\n".join(lines)
    for rank, code in re.findall(r"rank\s*: (\d+) \(local_rank: \d+\)\n\s*exitcode\s*: -(\d+)", report):
        if int(code) != signal.SIGTERM:  # which torchrun sends to the ranks that are left
            return f"rank {rank} was killed by signal {code}"
    return ""


def last_words(lines: list[str]) -> str:
    """The line of the ranks' output that says most likely why they ended: an exception, or else the last one."""
    own = [line.strip() for line in lines if line.strip() and "torch/distributed" not in line]
    errors = [line for line in own if re.match(r"(\w+\.)*\w*(Error|Exception|Interrupt)\b", line)]
    first = [line for line in errors if not line.startswith("torch.distributed.elastic")]
    return next(iter([*first, *errors[-1:], *own[-1:]]), "nothing")[:300]
