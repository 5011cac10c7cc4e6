"""A retraining that a worker does, with all the servers of `gptpipe up`: each round in a store and an experiment of
its own, on servers that go on from round to round."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psutil
import yaml

from gptpipe.config.settings import prepare_environment, reload_settings
from gptpipe.services.supervisor import Supervisor
from tests.chaos import trouble
from tests.chaos.alone import SETTINGS, marks_of, write_corpus
from tests.chaos.attack import Attack, fill, strike
from tests.chaos.outcome import Traces
from tests.fixtures.place import Place, wait_until

SERVERS = {"prefect": "PREFECT", "mlflow": "MLFLOW", "s3": "S3", "postgres": "POSTGRES"}
VICTIMS = (*SERVERS, "worker", "flow", "torchrun", "rank", "supervisor", "all")
# PostgreSQL's log alone may take hundreds of megabytes, and each round leaves a hundred in the store
DISK_MEGABYTES = {"postgres": 1024, "seaweedfs": 4096}
_TROUBLE_SECONDS = 25  # for which a disk is full, or the network slow or cut
_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_WORDS = {
    "worker": "flows.machines.worker",
    "flow": "prefect.engine",
    "torchrun": "torch.distributed.run",
    "rank": "gptpipe.train",
    "supervisor": "supervisor.supervisord",
}
_RUN_SECONDS = 480  # a machine that is gone is known to be after 90 s, and its run goes on after that


@dataclass
class Stacked:
    """One round.

    Attributes:
        name: of its store, experiment, model and worker. states: in which its flow runs ended: a second is a retry.
        strikes: how many attacks met their victim.
    """

    place: Place
    name: str
    states: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    strikes: int = 0

    def run(self, attack: Attack | None) -> None:
        """Press the button, attack, and press it once more where the run has not ended well."""
        corpus = self.place.folder / "corpus"
        if not corpus.exists():
            write_corpus(corpus)
        self.place.since = datetime.now(UTC)
        self._stop_other_worker()
        self._wait_for_store()
        self._start_worker()
        try:
            self._press(attack)
            if self.states[-1] != "COMPLETED":
                self._wait_for_store()
                self._press(None)
        finally:
            for worker in self.place.workers:
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGTERM)
                worker.wait(timeout=60)
            self.place.workers.clear()

    def outcome(self) -> dict[str, Any]:
        """What it has left behind."""
        os.environ.update(self.place.stack_environment())
        reload_settings()
        prepare_environment()
        mlflow = f"http://{self.place.host}:{self.place.ports['MLFLOW']}"
        traces = Traces(self._store, mlflow, self.name, self.name)
        return {**traces.outcome(), "left uploads": self._uploads(), "taken slots": self._slots()}

    @property
    def _store(self) -> str:
        return f"s3://gptpipe/{self.name}"

    @property
    def said(self) -> str:
        """What its worker and its runs have logged; the server hears of it later."""
        return (self.place.folder / self.name / "worker.log").read_text(errors="replace")

    @property
    def traces(self) -> int:
        """How many traces the runs' pages show."""
        return sum(line["level"] >= logging.INFO and "Traceback" in line["message"] for line in self.place.lines())

    def _up(self) -> None:
        done = self.place.call("up", "--json")
        assert done.returncode == 0, done.stderr
        self._stop_other_worker()

    def _wait_for_store(self) -> None:
        """One that a full disk has stuck is started again within two minutes."""

        def is_well() -> bool:
            checks = json.loads(self.place.call("doctor", "--json").stdout)["checks"]
            stack = next(one["detail"] for one in checks if one["name"] == "stack")
            return "seaweedfs" not in stack  # a worker of its own is missing all the time

        wait_until(is_well, 120, "the store takes objects again")

    def _stop_other_worker(self) -> None:
        """The stack's own, which would take the run to its own store."""
        supervisor = Supervisor(self.place.folder / ".gptpipe" / "stack")
        words = [sys.executable, "-m", "supervisor.supervisorctl", "-s", supervisor.url, "stop", "worker"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert supervisor.states()["worker"] != "RUNNING", done.stdout + done.stderr

    def _start_worker(self) -> None:
        self.place.start_worker(self.name, GPTPIPE_STORAGE=self._store, GPTPIPE_EXPERIMENT=self.name, pool="gptpipe")

    def _press(self, attack: Attack | None) -> None:
        began = time.monotonic()
        sections: dict[str, Any] = {}
        for key, value in SETTINGS.items():
            section, name = key.split(".")
            sections.setdefault(section, {})[name] = yaml.safe_load(value)
        sections["data"]["corpus"] = [{"url": str(self.place.folder / "corpus")}]
        sections["promote"] = {"model_name": self.name}
        run = self.place.press_run("retrain/on-demand", **sections)
        if attack:
            self._attack(attack, run)
        until = time.monotonic() + _RUN_SECONDS
        state: Mapping[str, Any] = {"type": "UNKNOWN", "message": f"not ended within {_RUN_SECONDS} s"}
        while time.monotonic() < until:
            with suppress(OSError):  # Prefect's server may be the one that is away
                now = self.place.state(run)
                if now["type"] in _FINAL and not self._goes_on(run, now):
                    state = now
                    break
            time.sleep(0.5)
        self.states.append(state["type"])
        self.messages.append(str(state.get("message") or ""))
        self.seconds.append(time.monotonic() - began)

    def _goes_on(self, run: str, state: Mapping[str, Any]) -> bool:
        """Whether a crashed run is taken up again a moment later, as the server's automation does."""
        if state["type"] != "CRASHED":
            return False
        time.sleep(15)
        return bool(self.place.state(run)["type"] not in _FINAL)

    def _attack(self, attack: Attack, run: str) -> None:
        until = time.monotonic() + _RUN_SECONDS
        while attack.mark and attack.mark not in marks_of(self.said):
            if self.place.state(run)["type"] in _FINAL or time.monotonic() > until:
                return
            time.sleep(0.2)
        time.sleep(attack.delay)
        if attack.fault == "network":
            self.strikes += 1
            trouble.network(attack.victim, _TROUBLE_SECONDS)
            return
        if attack.fault == "full disk":
            self.strikes += 1
            filler = fill(self.place.folder / ".gptpipe" / "stack" / attack.victim)
            time.sleep(_TROUBLE_SECONDS)
            filler.unlink()
            return
        victims = self._victims(attack.victim)
        if not victims:
            return
        self.strikes += 1
        strike(victims, attack.fault)
        if attack.victim in ("all", "supervisor") and attack.fault == "kill":  # the machine has started again
            psutil.wait_procs(victims, timeout=20)
            self._up()
        if attack.victim in ("all", "worker") and attack.fault == "kill":
            for worker in self.place.workers:
                worker.kill()
                worker.wait()
            self.place.workers.clear()
            self._start_worker()

    def _victims(self, name: str) -> list[psutil.Process]:
        if name in SERVERS:
            listener = self.place.listeners().get(SERVERS[name])
            if listener is None:
                return []
            process = psutil.Process(listener[1])
            return [process, *process.children(recursive=True)] if name == "mlflow" else [process]
        if name == "flow":
            return self._flows()
        if name == "all":
            return [*self.place.processes().values(), *self._flows()]
        word = _WORDS[name]
        return [
            process
            for process in self.place.processes(word).values()
            if name != "rank" or _WORDS["torchrun"] not in process.cmdline()
        ]

    def _flows(self) -> list[psutil.Process]:
        """The flow runs' processes of this round, which work in folders of Prefect's."""
        flows = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                of_this = process.environ().get("GPTPIPE_EXPERIMENT") == self.name
                if of_this and _WORDS["flow"] in process.cmdline():
                    flows.append(process)
        return flows

    def _uploads(self) -> int:
        """Uploads of this round's store that were begun and neither finished nor given up."""
        from gptpipe.storage.remote import filesystem

        s3, _ = filesystem(self._store)
        reply = s3.call_s3("list_multipart_uploads", Bucket="gptpipe", Prefix=self.name)
        return len(reply.get("Uploads", []))

    def _slots(self) -> int:
        limits = self.place.prefect("v2/concurrency_limits/filter", {})
        return int(sum(limit["active_slots"] for limit in limits))
