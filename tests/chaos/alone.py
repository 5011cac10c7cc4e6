"""A command in a folder of its own, by default the whole pipeline: started, watched, attacked, started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import trouble
from tests.chaos.attack import CHANGE, CLOCK, Attack, fill, flip, strike
from tests.chaos.outcome import Traces, unended_flow_runs
from tests.fixtures.bad_store import BadStore
from tests.fixtures.databases import PREFECT, copy_database

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))
SETTINGS = {
    "model.n_layer": "1",
    "model.n_embd": "16",
    "model.n_head": "2",
    "model.context_length": "32",
    "train.steps": "40",
    "train.batch_size": "4",
    "train.warmup_steps": "2",
    "train.validate_every": "10",
    "train.checkpoint_every": "4",
    "train.log_every": "1",
    "train.precision": "float32",
    "train.threads": "1",
    "sample.max_new_tokens": "8",
    "data.shard_megabytes": "1",
}
RUN = ("run", "--corpus", "corpus", *(word for key in SETTINGS for word in ("--set", f"{key}={SETTINGS[key]}")))
_MARK = re.compile(
    r"(?:^|gptpipe\.\S+ - )(plan:|tokenize:|training from|train:|evaluate:|sample:|register:|report:)|/(step-\d+) in "
)
_ROLES = {"server": "gptpipe.services.prefect_server", "torchrun": "torch.distributed.run", "rank": "gptpipe.train"}
_TRY_SECONDS = 300
_VICTIM_SECONDS = 10  # in which a victim that is not there yet may come
_GRACE_SECONDS = 5.0  # in which what a command started may still end after it
DISK_MEGABYTES = 256


def write_corpus(folder: Path) -> None:
    """Forty short files."""
    folder.mkdir(parents=True)
    for i in range(40):
        lines = [f"def f{i}_{j}(x):\n    return x + {i * j}" for j in range(30)]
        (folder / f"{i:02}.py").write_text("\n".join(lines))


def marks_of(log: str) -> list[str]:
    """The words that say how far a run is, each once, in their order."""
    found = (match[1] or match[2] for line in log.splitlines() if (match := _MARK.search(line)))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Try:
    """One time that the command was run.

    Attributes:
        said: its last words on stderr. error: of its JSON, where it ended with one.
        left: command lines of processes that outlived it.
    """

    code: int
    said: list[str]
    answer: dict[str, Any]
    seconds: float
    left: list[str]

    @property
    def faults(self) -> list[str]:
        """What a person should not have seen."""
        faults = [f"a process outlived it: {command}" for command in self.left]
        if any("Traceback" in line for line in self.said):
            faults.append("a trace on stderr")
        # killed, or interrupted before Python could say anything
        silent = self.code < 0
        error = self.answer.get("error", {})
        if self.code and not silent and not (error.get("message") and error.get("hint")):
            faults.append(f"exit code {self.code} without a line that says why, and what to do: {error}")
        if self.code in (1, 2) and not error.get("where"):
            faults.append(f"exit code {self.code} without a place: {error}")
        if any("\n" in text for text in error.values()):
            faults.append(f"more than a line: {error}")
        return faults


@dataclass
class Alone:
    """A command of gptpipe with a home, a temporary folder and a corpus of its own below `folder`.

    Attributes:
        words: the command. variables: more of its environment. store: folder or URL; by default in the home.
        door: before the store, where something may go wrong.
        strikes: how many attacks met their victim: some come after it has ended. flipped: files of which a byte was.
    """

    folder: Path
    words: Sequence[str] = RUN
    variables: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    door: BadStore | None = None
    tries: list[Try] = field(default_factory=list)
    strikes: int = 0
    flipped: list[Path] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def prepare(self, databases: Mapping[str, Path] | None = None) -> None:
        """Write the corpus and a home.

        Args:
            databases: what is copied into the home, by its path there: they take seconds to make.
        """
        write_corpus(self.folder / "corpus")
        self.home.mkdir(mode=0o700, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        for name, database in (databases or {}).items():
            copy_database(database, self.home / name)

    def run(self, *attacks: Attack) -> None:
        """Run it, once with each attack, and once more where the last of them has not ended well."""
        with self._small_disk(attacks):
            for attack in attacks:
                self.attempt(attack)
            if not self.tries or self.tries[-1].code:
                if self.door:
                    self.door.wait()
                self.attempt(None)
            if any(attack.fault == "full disk" and attack.victim == "home" for attack in attacks):
                shutil.copytree(self.home, self.folder / "kept")  # off the disk that is gone in a moment

    def family(self) -> dict[str, list[psutil.Process]]:
        """What runs for this home, by role."""
        roles: dict[str, list[psutil.Process]] = {"all": []}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE or process.environ().get("GPTPIPE_HOME") != str(self.home):
                    continue
                command = process.cmdline()
                role = next((name for name, word in _ROLES.items() if word in command), "helper")
                if command[1:2] == [GPTPIPE]:
                    role = "flow"
                roles.setdefault(role, []).append(process)
                roles["all"].append(process)
        return roles

    def outcome(self) -> dict[str, Any]:
        """What it has left behind."""
        home = self.folder / "kept" if (self.folder / "kept").exists() else self.home
        # MLflow's client keeps a database open, and the next one may lie in the same place
        copied = Path(tempfile.mkdtemp(dir=self.folder)) / "mlflow.db"
        copy_database(home / "mlflow.db", copied)
        traces = Traces(self.store or str(home / "storage"), f"sqlite:///{copied}", "gptpipe", "gptpipe")
        left = sorted(file.name for file in self.temporary.iterdir())
        pages = {file.name: file.read_text().endswith("</html>\n") for file in self.folder.glob("*.html")}
        return {**traces.outcome(), "temporary folder": left, "whole pages": pages}

    @property
    def unended(self) -> int:
        """How many flow runs Prefect takes for running."""
        home = self.folder / "kept" if (self.folder / "kept").exists() else self.home
        return unended_flow_runs(home / PREFECT)

    @property
    def names_what_was_flipped(self) -> bool:
        """Whether the last try ended with a line about the file of which a byte was flipped, or its folder."""
        where = self.tries[-1].answer.get("error", {}).get("where", "")
        return any(str(place) in where for file in self.flipped for place in (file, file.parent))

    def end(self) -> None:
        """Kill whatever runs."""
        for process in self.family()["all"]:
            with suppress(psutil.Error):
                process.kill()
        trouble.remove_group(self._group)

    @contextmanager
    def _small_disk(self, attacks: Sequence[Attack]) -> Iterator[None]:
        """A disk of its own below the place that is to be full."""
        places = {self._place(attack) for attack in attacks if attack.fault == "full disk"}
        if not places:
            yield
            return
        (place,) = places
        with trouble.small_disk(place, DISK_MEGABYTES):
            try:
                yield
            finally:
                self.end()

    def _place(self, attack: Attack) -> Path:
        return self.home if attack.victim == "home" else self.temporary

    def attempt(self, attack: Attack | None = None) -> None:
        """Run it once, with an attack or without."""
        number = len(self.tries)
        log_file, answer_file = self.folder / f"log-{number}.txt", self.folder / f"answer-{number}.json"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("GPTPIPE_", "PREFECT_", "AWS_"))
        }
        environment |= {"GPTPIPE_HOME": str(self.home), "TMPDIR": str(self.temporary), "NO_COLOR": "1"}
        environment |= self.variables
        if attack and attack.fault == "clock":
            environment |= trouble.clock(self.folder)
        prefix = trouble.group(self._group) if attack and attack.fault == "memory" else []
        before = _newest(self.folder) if attack and attack.mark == CHANGE else 0
        began = time.monotonic()
        with log_file.open("wb") as log, answer_file.open("wb") as answer:
            process = subprocess.Popen(
                [*prefix, GPTPIPE, *self.words, "--json"],
                cwd=self.folder,
                env=environment,
                stdout=answer,
                stderr=log,
                start_new_session=True,
            )
        filler = self._attack(attack, process, log_file, before) if attack else None
        try:
            code = process.wait(timeout=_TRY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            log_file.write_text(f"{log_file.read_text()}\nTraceback: it did not end within {_TRY_SECONDS} s\n")
        seconds = time.monotonic() - began
        left = self._outlived()
        if filler:
            filler.unlink()
        said = log_file.read_text(errors="replace").splitlines()
        parsed: dict[str, Any] = {}
        with suppress(ValueError):
            parsed = json.loads(answer_file.read_text())
        self.tries.append(Try(code, said, parsed, seconds, left))

    @property
    def _group(self) -> str:
        return f"chaos-{os.getpid()}-{self.folder.name}"

    def _attack(self, attack: Attack, process: subprocess.Popen[bytes], log: Path, before: int) -> Path | None:
        """Wait for the moment and do it; the file that fills the disk. Nothing happens where the run ends before.

        Args:
            before: when the newest file was written before the command began.
        """

        def reached() -> bool:
            if attack.mark == CHANGE:
                return _newest(self.folder) > before
            return not attack.mark or attack.mark in marks_of(log.read_text(errors="replace"))

        while not reached():
            if process.poll() is not None:
                return None
            time.sleep(0.002 if attack.mark == CHANGE else 0.02)
        time.sleep(attack.delay)
        if process.poll() is not None:
            return None
        if attack.fault == "full disk":
            self.strikes += 1
            return fill(self._place(attack))
        if attack.fault == "store":
            assert self.door is not None
            self.door.begin(attack.victim)
            self.strikes += 1
            return None
        if attack.fault == "clock":
            trouble.move_clock(self.folder, CLOCK[attack.victim])
            self.strikes += 1
            return None
        if attack.fault == "memory":
            self.strikes += trouble.take_memory(self._group)
            return None
        if attack.fault == "flip":
            strike(self.family()["all"], "kill")
            process.wait()
            if file := flip(self.home, attack.chance):
                self.flipped.append(file)
                self.strikes += 1
            return None
        until = time.monotonic() + _VICTIM_SECONDS
        while process.poll() is None and time.monotonic() < until:
            if victims := self.family().get(attack.victim):
                self.strikes += 1
                strike(victims[:1] if attack.victim == "helper" else victims, attack.fault)
                break
            time.sleep(0.05)
        return None

    def _outlived(self) -> list[str]:
        until = time.monotonic() + _GRACE_SECONDS
        while (left := self.family()["all"]) and time.monotonic() < until:
            time.sleep(0.1)
        commands = []
        for process in left:
            with suppress(psutil.Error):
                commands.append(" ".join(process.cmdline())[:200])
                process.send_signal(signal.SIGKILL)
        return commands


def _newest(folder: Path) -> int:
    """When something below a folder was written last, in nanoseconds; logs of the command are not looked at."""
    newest = 0
    for place, _, files in os.walk(folder):
        for file in [Path(place), *(Path(place, name) for name in files if not name.startswith(("log-", "answer-")))]:
            with suppress(OSError):
                if file != folder:
                    newest = max(newest, file.stat().st_mtime_ns)
    return newest
