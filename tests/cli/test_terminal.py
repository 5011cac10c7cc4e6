"""`gptpipe run` on a pseudo-terminal: Ctrl-C in every stage, and a Prefect server that goes away meanwhile."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.fixtures.databases import PREFECT, copy_database

GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))
CTRL_C = b"\x03"
LINES = "".join(f"def f{number}(x):\n    return x * {number}\n\n" for number in range(300))
NANO = ["--set", "model.n_layer=1", "--set", "model.n_embd=32", "--set", "model.n_head=2"]
SMALL = [*NANO, "--set", "model.context_length=32", "--set", "train.batch_size=4", "--set", "train.validate_tokens=64"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, empty_prefect: Path) -> None:
    """A command's home, with Prefect's tables."""
    copy_database(empty_prefect, tmp_path / "home" / PREFECT)


class Terminal:
    """A command with a terminal of its own, whose keys reach its whole process group."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.said, self._folder = "", folder
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            os.execve(GPTPIPE, ["gptpipe", *words], kept | {"GPTPIPE_HOME": str(folder / "home")})

    def read_until(self, text: str, seconds: float = 480) -> None:
        until = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < until, f"no {text!r} in {self.said[-2000:]}"
            assert self._read(), f"ended before {text!r}: {self.said[-2000:]}"

    def press(self, key: bytes) -> None:
        os.write(self._end, key)

    def code(self, seconds: float) -> int:
        """Its exit code, within so many seconds."""
        until = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < until, f"does not end: {self.said[-2000:]}"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        """Take what it says within a fifth of a second; False when it has ended."""
        if not select.select([self._end], [], [], 0.2)[0]:
            return True
        try:
            self.said += os.read(self._end, 65536).decode("utf-8", "replace")
        except OSError:  # the last process that had the terminal is gone
            return False
        return True

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def wait_for_server(self) -> None:
        """Until its process is there; it takes seconds more to answer."""
        until = time.monotonic() + 60
        while not any("gptpipe.services.prefect_server" in process.cmdline() for process in self.family()):
            assert time.monotonic() < until, f"no server: {self.said[-2000:]}"
            self._read()

    def server(self) -> psutil.Process:
        return next(process for process in self.family() if "gptpipe.services.prefect_server" in process.cmdline())


@contextmanager
def terminal(folder: Path, *words: str) -> Iterator[Terminal]:
    """The command; nothing of it is left at the end, or else the test fails."""
    (folder / "notes").mkdir(exist_ok=True)
    for number in range(40):
        (folder / "notes" / f"{number:02}.py").write_text(f"# {number}\n{LINES}")
    made = Terminal(folder, *words)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            os.kill(made.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while left := [p for p in psutil.process_iter() if _is_of(p, folder)]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def _is_of(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.Error):
        return process.environ().get("GPTPIPE_HOME") == str(folder / "home") and process.status() != "zombie"
    return False


def last_line(made: Terminal) -> str:
    return made.said.replace("\r", "\n").strip().splitlines()[-1]


def run_words(*more: str) -> list[str]:
    return ["run", "--corpus", "notes", *SMALL, *more]


@pytest.mark.slow
def test_ctrl_c_in_training_saves_and_ends_with_75_within_seconds(tmp_path: Path) -> None:
    with terminal(tmp_path, *run_words("--set", "train.steps=100000")) as made:
        made.read_until("  loss ")
        made.press(CTRL_C)
        code = made.code(seconds=20)
    assert code == 75
    assert "saved at step" in last_line(made)
    assert "Traceback" not in made.said
    assert "Error logging" not in made.said


def test_sigterm_ends_with_one_line_and_75_too(tmp_path: Path) -> None:
    with terminal(tmp_path, *run_words()) as made:
        made.wait_for_server()
        os.kill(made.pid, signal.SIGTERM)
        code = made.code(seconds=20)
    assert code == 75
    assert "stopped — run the same command again" in last_line(made)
    assert "Traceback" not in made.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "more"),
    [
        ("", ()),  # while Prefect's server starts, which a quick machine says nothing of
        ("tokenize: ", ()),
        ("training from the first step", ()),
        ("scored ", ("--set", "train.steps=3", "--set", "evaluate.stride=1")),
    ],
)
def test_ctrl_c_in_another_stage_ends_with_one_line_and_75(tmp_path: Path, moment: str, more: tuple[str, ...]) -> None:
    with terminal(tmp_path, *run_words("--set", "train.steps=100000", *more)) as made:
        if moment:
            made.read_until(moment)
        else:
            made.wait_for_server()
        before = len(made.said)
        made.press(CTRL_C)
        code = made.code(seconds=20)
    assert code == 75
    assert "run" in last_line(made)
    assert "again" in last_line(made)
    assert "Traceback" not in made.said
    assert len(made.said[before:].strip().splitlines()) <= 8


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_without_a_trace(tmp_path: Path) -> None:
    with terminal(tmp_path, *run_words("--set", "train.steps=100000")) as made:
        made.read_until("  loss ")
        made.press(CTRL_C)
        time.sleep(0.3)
        made.press(CTRL_C)
        code = made.code(seconds=5)
    assert code == 75
    assert "Traceback" not in made.said


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["  loss ", "evaluate: "])
def test_a_run_whose_server_is_killed_is_finished_all_the_same(tmp_path: Path, moment: str) -> None:
    with terminal(tmp_path, *run_words("--set", "train.steps=300")) as made:
        made.read_until(moment)
        made.server().kill()
        code = made.code(seconds=200)
    assert code == 0, made.said[-3000:]
    assert "now champion" in made.said
    assert "went away" in made.said
    assert "Traceback" not in made.said


@pytest.mark.slow
def test_a_run_whose_server_is_killed_again_and_again_is_finished_all_the_same(tmp_path: Path) -> None:
    with terminal(tmp_path, *run_words("--set", "train.steps=300")) as made:
        made.read_until("  loss ")
        for _ in range(3):
            made.server().kill()
            time.sleep(4)
        code = made.code(seconds=250)
    assert code == 0, made.said[-3000:]
    assert made.said.count("went away") == 3
    assert "Traceback" not in made.said


@pytest.mark.slow
def test_nothing_is_left_of_a_run_that_is_killed(tmp_path: Path) -> None:
    with terminal(tmp_path, *run_words("--set", "train.steps=100000")) as made:
        made.wait_for_server()
        os.kill(made.pid, signal.SIGKILL)
        os.waitpid(made.pid, 0)
