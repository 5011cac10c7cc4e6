"""A build killed at any instant is completed into the undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fixtures.corpora import build, contents, small_corpora

# Runs in a process of its own, which forks one child a kill: the child counts what it does to files below its
# folder and kills itself at the given one, before it happens or with a file half written. So every instant
# between two of them is tried.
KILLS = """
import json, os, signal, sys, hashlib
from pathlib import Path
import pyarrow.dataset
from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.tokenizer import get_tokenizer

root, corpora = Path(sys.argv[1]), sys.argv[2:]
config = DataConfig(corpus=corpora, validation=0.3, workers=1)
gpt2 = get_tokenizer("gpt2")
gpt2.encode_array("warm"), gpt2.sha256, gpt2.byte_lengths  # so that the children need not
left, below = None, ""

def count(event, arguments):
    global left
    if left is not None and event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
        if str(arguments[0]).startswith(below):
            left -= 1
            if left < 0:
                left = None
                if event == "open" and "w" in str(arguments[1]):  # die in the middle of writing it
                    torn = os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.write(torn, b"torn")
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)

def run(out, kill_at=None):
    global left, below
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        left, below = kill_at, str(out)
        result = tokenize(config, str(out))
        left = None
        os.write(writing, json.dumps(result.as_dict()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if status == 0 else -status

def state(out):
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

def dataset(files):
    return {path: digest for path, digest in files.items() if "/" in path}

whole = run(root / "whole")
expected = dataset(state(root / "whole"))
print(json.dumps({"expected": sorted(expected), "shards": whole["shards_written"]}))
kill_at = 0
while True:
    out = root / f"kill-{kill_at}"
    killed = run(out, kill_at)
    seen = state(out) if out.exists() else {}
    done = run(out)
    after = state(out)
    print(json.dumps({
        "kill_at": kill_at,
        "killed": killed == -9,
        "present": sorted(seen),
        "whole": {path: seen.get(path) for path in expected} == expected,
        "written": done["shards_written"],
        "equal": dataset(after) == expected,
        "after": sorted(after),
        "id": done["id"] == whole["id"],
    }), flush=True)
    if killed != -9:
        break
    kill_at += 1
out, kills = root / "again-and-again", 0
for kill_at in [k for k in range(8, kill_at, 7) for _ in range(2)]:
    kills += run(out, kill_at) == -9
run(out)
print(json.dumps({"kills": kills, "equal": dataset(state(out)) == expected, "after": sorted(state(out))}))
"""
# Makes shards on processes and stops in the middle, until it is killed from outside.
STALLS = """
import sys
from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.corpus.engine import Processes

class Stalling(Processes):
    def run(self, work, tasks):
        self.started()
        for number, report in enumerate(super().run(work, tasks), 1):
            if number == 2:
                print("in the middle", flush=True)
                sys.stdin.read()
            yield report

if __name__ == "__main__":
    tokenize(DataConfig(corpus=sys.argv[2:], validation=0.3, workers=2), sys.argv[1], Stalling(2))
"""


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What was found after a kill at every instant, and after completing it."""
    root = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", KILLS, str(root / "out"), *small_corpora(root, 2)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_build_killed_at_any_instant_and_completed_is_the_undisturbed_one(kills: list[dict[str, Any]]) -> None:
    attempts = kills[1:-1]
    assert len(attempts) > 30
    assert all(attempt["killed"] for attempt in attempts[:-1])
    assert not attempts[-1]["killed"]
    assert [attempt["kill_at"] for attempt in attempts if not (attempt["equal"] and attempt["id"])] == []


def test_no_manifest_is_seen_before_everything_else_is_there(kills: list[dict[str, Any]]) -> None:
    committed = [any(path.endswith("/manifest.json") for path in attempt["present"]) for attempt in kills[1:-1]]
    assert committed == sorted(committed)  # first never, then always
    assert committed[-2]
    assert [a["kill_at"] for a, seen in zip(kills[1:-1], committed, strict=True) if seen and not a["whole"]] == []


def test_shards_that_were_complete_are_not_made_again(kills: list[dict[str, Any]]) -> None:
    shards = kills[0]["shards"]
    assert shards == 2
    complete = {}
    for attempt in kills[1:-1]:
        files = [Path(path) for path in attempt["present"] if not Path(path).name.startswith(".")]
        if not any(file.name == "manifest.json" for file in files):
            names = [{file.name for file in files if file.parent.name == split} for split in ("train", "validation")]
            there = names[0] & names[1]
            complete[attempt["kill_at"]] = len(there)
            assert attempt["written"] == shards - len(there)
    assert set(complete.values()) == {0, 1, 2}


def test_a_build_killed_again_and_again_still_ends(kills: list[dict[str, Any]]) -> None:
    assert kills[-1]["kills"] >= 5
    assert kills[-1]["equal"]


def test_nothing_half_written_is_left_behind(kills: list[dict[str, Any]]) -> None:
    left = {path for attempt in kills[1:] for path in attempt["after"] if ".tmp" in path}
    assert sorted(path.rsplit("-", 1)[1] for path in left) == []


def test_a_parallel_build_killed_from_outside_is_completed_and_its_workers_end(tmp_path: Path) -> None:
    corpora = small_corpora(tmp_path, 6)
    expected = build(tmp_path / "whole", *corpora, validation=0.3)
    script = tmp_path / "stalls.py"
    script.write_text(STALLS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(script), str(tmp_path / "out"), *corpora]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"in the middle\n"
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=5)
    for left in alive:
        left.kill()
    assert not list((tmp_path / "out").rglob("manifest.json"))
    done = build(tmp_path / "out", *corpora, validation=0.3)
    assert done.shards_written < expected.shards_written
    assert contents(done.dataset) == contents(expected.dataset)
    assert [left.pid for left in alive] == [], "the workers of a killed build live on"
