"""Proves that a build killed, doubled or damaged ends as the undisturbed one, and that a sick store is told in time."""

from __future__ import annotations

import http.server
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptpipe import storage
from gptpipe.corpus.damage import whole_dataset
from gptpipe.corpus.fingerprints import Fingerprints
from gptpipe.corpus.plan import DatasetPlan
from gptpipe.errors import UserError
from tests.fixtures.corpora import build, contents, remote_contents, some_text
from tests.fixtures.datasets import serving
from tests.fixtures.environment import begin_again

# A build in a process of its own, with workers; says when it begins and what it came to.
BUILD = """
import json, sys
from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.errors import UserError

if __name__ == "__main__":
    config = DataConfig.model_validate_json(sys.argv[2])
    print("begins", flush=True)
    try:
        print(json.dumps(tokenize(config, sys.argv[1]).as_dict()), flush=True)
    except UserError as error:
        print("refused: " + str(error), flush=True)
        sys.exit(2)
"""
LIMIT = 120  # seconds for one build


def corpora(root: Path) -> list[str]:
    """Three corpora: small files with copies, lines with copies, a text and lines that are read in ranges."""
    small, lines, large = root / "small", root / "lines", root / "large"
    for folder in (small, lines, large):
        folder.mkdir(parents=True)
    for i in range(60):
        (small / f"{i}.txt").write_text(some_text(i % 45, 2000))
    texts = [some_text(i % 30, 1500) for i in range(50)]
    (lines / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (large / "large.txt").write_text(some_text(1000, 1_200_000))
    texts = [some_text(i % 500 + 2000, 1500) for i in range(700)]
    (large / "large.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return [str(small), str(lines), str(large)]


def options(urls: list[str], **values: Any) -> dict[str, Any]:
    corpus = [{"url": url, "name": None} for url in urls]
    return {"corpus": corpus, "validation": 0.3, "shard_megabytes": 1, "workers": 2, "drop_duplicates": True, **values}


def started(script: Path, out: str, wanted: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A build in a session of its own; the settings of this process's environment are passed on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    script.write_text(BUILD)
    command = [sys.executable, str(script), out, json.dumps(wanted)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finished(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    said, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, (said + errors).decode()
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def killed(process: subprocess.Popen[bytes], after: float) -> bool:
    """Kill a build with all of its processes so long after it began; whether it was still at work."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"begins\n"
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=after)
    members = [process.pid, *(child.pid for child in children_of(process.pid))]
    was_at_work = process.poll() is None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in members) and time.monotonic() < deadline:
        time.sleep(0.02)  # a process that is dead but not waited for by anybody still has its number
    return was_at_work


def children_of(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def temporaries(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if ".tmp" in path.name]


def files_of(url: str) -> dict[str, bytes]:
    return contents(url) if storage.is_local(url) else remote_contents(url)


class Killing:
    """Builds killed at random instants, each completed and compared with one that nobody disturbed."""

    def __init__(self, root: Path, place: str, seed: int) -> None:
        self.root, self.place = root, place
        self.draw = random.Random(seed)
        self.wanted = options(corpora(root / "corpora"))
        began = time.monotonic()
        self.whole = finished(started(root / "build.py", str(root / "whole"), self.wanted))
        self.seconds = time.monotonic() - began
        self.expected = contents(self.whole["dataset"])
        self.caught = 0

    def strike(self, number: int, times: int = 1) -> None:
        out = f"{self.place}/out-{number}"
        for _ in range(times):
            process = started(self.root / "build.py", out, self.wanted)
            self.caught += killed(process, self.draw.uniform(0.02, self.seconds))
        done = finished(started(self.root / "build.py", out, self.wanted))
        assert done["id"] == self.whole["id"]
        found = files_of(done["dataset"])
        assert sorted(found) == sorted(self.expected)
        assert found == self.expected
        assert done["dropped"] == self.whole["dropped"]
        if storage.is_local(out):
            assert temporaries(Path(out)) == []
            assert sorted(path.name for path in Path(out).iterdir()) == sorted(
                [".fingerprints.parquet", "latest.json", done["id"]]
            )
        assert temporaries(Path(os.environ["GPTPIPE_HOME"])) == []


@pytest.mark.slow
def test_a_build_killed_at_a_random_instant_is_completed_in_a_folder(tmp_path: Path) -> None:
    killing = Killing(tmp_path, str(tmp_path), seed=1)
    for number in range(8):  # an instant may lie behind the end
        killing.strike(number)
        if number and killing.caught:
            break
    assert killing.caught


@pytest.mark.slow
@pytest.mark.stack
def test_a_build_killed_at_a_random_instant_is_completed_in_an_object_store(tmp_path: Path, s3_storage: str) -> None:
    killing = Killing(tmp_path, s3_storage, seed=2)
    for number in range(8):  # an instant may lie behind the end
        killing.strike(number)
        if number and killing.caught:
            break
    assert killing.caught


@pytest.mark.slow
@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(10**6)], ids=["seed"])
def test_fifteen_kills_in_a_folder(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")  # shown when it fails
    killing = Killing(tmp_path, str(tmp_path), seed)
    for number, times in enumerate([1] * 9 + [2] * 3):
        killing.strike(number, times)
    assert killing.caught >= 8


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(10**6)], ids=["seed"])
def test_fifteen_kills_in_an_object_store(tmp_path: Path, s3_storage: str, seed: int) -> None:
    print(f"seed {seed}")
    killing = Killing(tmp_path, s3_storage, seed)
    for number, times in enumerate([1] * 9 + [2] * 3):
        killing.strike(number, times)
    assert killing.caught >= 8


# --- two at once ---------------------------------------------------------------------------------------------


def two_at_once(root: Path, out: str, wanted: dict[str, Any]) -> None:
    whole = finished(started(root / "build.py", str(root / "whole"), wanted))
    both = [started(root / "build.py", out, wanted) for _ in range(2)]
    results = [finished(process) for process in both]
    assert [result["id"] for result in results] == [whole["id"]] * 2
    assert files_of(results[0]["dataset"]) == contents(whole["dataset"])
    if storage.is_local(out):
        assert temporaries(Path(out)) == []
    assert storage.read_json(f"{out}/latest.json")["id"] == whole["id"]
    assert finished(started(root / "build.py", out, wanted))["already_done"]


def test_two_builds_of_the_same_at_once_end_well_in_a_folder(tmp_path: Path) -> None:
    two_at_once(tmp_path, str(tmp_path / "out"), options(corpora(tmp_path / "corpora"), workers=1))


@pytest.mark.slow
@pytest.mark.stack
def test_two_builds_of_the_same_at_once_end_well_in_an_object_store(tmp_path: Path, s3_storage: str) -> None:
    two_at_once(tmp_path, f"{s3_storage}/out", options(corpora(tmp_path / "corpora"), workers=1))


# --- damage --------------------------------------------------------------------------------------------------


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "a byte flipped": flip,
    "the last byte flipped": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "cut off": lambda content: content[: len(content) // 3],
    "emptied": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "another Parquet file": None,
    "removed": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_a_damaged_shard_is_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, drop_duplicates: bool
) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(40):
        (tmp_path / "corpus" / f"{i}.txt").write_text(some_text(i % 30))
    (tmp_path / "corpus" / "large.txt").write_text(some_text(99, 1_200_000))
    wanted = {"shard_megabytes": 1, "validation": 0.3, "drop_duplicates": drop_duplicates}
    made = build(tmp_path / "out", tmp_path / "corpus", **wanted)
    expected = contents(made.dataset)
    shards = sorted(path for path in expected if path.startswith(("train/", "validation/")))
    for path in shards:
        file = Path(made.dataset, path)
        harm = DAMAGES[damage]
        if harm is not None:
            file.write_bytes(harm(expected[path]))
        elif damage == "removed":
            file.unlink()
        else:
            file.write_bytes(expected[next(other for other in shards if other != path)])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gptpipe"):
            again = build(tmp_path / "out", tmp_path / "corpus", **wanted)
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        named = [line for line in warnings if str(file) in line]
        assert len(named) == 1, warnings
        assert "made again" in named[0]
        assert not again.already_done
        assert again.shards_written == 1
        assert contents(made.dataset) == expected
        assert build(tmp_path / "out", tmp_path / "corpus", **wanted).already_done


@pytest.mark.parametrize("name", ["manifest.json", "shards.parquet", "sources.parquet"])
@pytest.mark.parametrize("damage", ["flipped", "cut off", "removed"])
def test_damaged_records_of_a_dataset_are_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(10):
        (corpus / f"{i}.txt").write_text(some_text(i))
    made = build(tmp_path / "out", corpus, validation=0)
    expected = contents(made.dataset)
    file = Path(made.dataset, name)
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(b"\xff" + expected[name][1:] if damage == "flipped" else expected[name][:40])
    with caplog.at_level(logging.WARNING, "gptpipe"):
        again = build(tmp_path / "out", corpus, validation=0)
    assert contents(again.dataset) == expected
    assert not again.already_done
    assert (str(file) in caplog.text) or (name, damage) == ("manifest.json", "removed")  # then there was no dataset


def test_no_bit_of_a_manifest_can_be_flipped_unseen(tmp_path: Path) -> None:
    """But of what only tells of the sources: how many there were, and what was left out and why."""
    (tmp_path / "corpus").mkdir()
    for i in range(10):
        (tmp_path / "corpus" / f"{i}.txt").write_text(some_text(i))
    made = build(tmp_path / "out", tmp_path / "corpus", validation=0.3)
    file = Path(made.dataset, "manifest.json")
    written = file.read_bytes()
    says = json.loads(written)
    planned = DatasetPlan(says["id"], made.dataset, says["options"], says["tokenizer"], (), {})
    known = Fingerprints(str(tmp_path / "out"))

    def told(content: bytes) -> Any:
        manifest = json.loads(content)
        for corpus in manifest["corpora"].values():
            for key in ("sources", "dropped", "skipped"):
                corpus.pop(key)
        return manifest

    draw = random.Random(0)
    for place in range(len(written)):
        content = bytearray(written)
        content[place] ^= 1 << draw.randrange(7)
        file.write_bytes(content)
        try:
            dataset = whole_dataset(planned, known)
        except UserError:
            continue  # another format
        if dataset is not None:
            assert told(bytes(content)) == told(written), (place, bytes(content))
            assert dataset.load_tokenizer().vocab_size == 50257


@pytest.mark.stack
def test_a_damaged_shard_in_an_object_store_is_named_and_made_again(
    tmp_path: Path, s3_storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(40):
        (tmp_path / "corpus" / f"{i}.txt").write_text(some_text(i))
    made = build(s3_storage, tmp_path / "corpus", validation=0.3)
    expected = remote_contents(made.dataset)
    for path, harm in zip(sorted(expected)[-2:], (flip, None), strict=True):
        url = f"{made.dataset}/{path}"
        storage.write_bytes(url, harm(expected[path])) if harm else storage.remove(url)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gptpipe"):
            again = build(s3_storage, tmp_path / "corpus", validation=0.3)
        assert any(url in record.getMessage() for record in caplog.records)
        assert again.shards_written == 1
        assert remote_contents(made.dataset) == expected
        assert build(s3_storage, tmp_path / "corpus", validation=0.3).already_done


def test_a_shard_damaged_in_one_dataset_is_whole_in_the_next(tmp_path: Path) -> None:
    """Shards that did not change are links to those of the earlier dataset: both have the damage, both lose it."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "other").mkdir()
    for i in range(20):
        (tmp_path / "corpus" / f"{i}.txt").write_text(some_text(i))
    (tmp_path / "other" / "a.txt").write_text(some_text(50))
    both = [tmp_path / "corpus", tmp_path / "other"]
    first = build(tmp_path / "out", *both, validation=0)
    expected = contents(first.dataset)
    (tmp_path / "other" / "b.txt").write_text(some_text(51))
    second = build(tmp_path / "out", *both, validation=0)
    assert second.shards_copied == 1
    linked = next(path for path in expected if path.startswith("train/") and Path(second.dataset, path).exists())
    Path(first.dataset, linked).write_bytes(flip(expected[linked]))
    assert contents(build(tmp_path / "out", *both, validation=0).dataset) == contents(
        build(tmp_path / "fresh", *both, validation=0).dataset
    )
    (tmp_path / "other" / "b.txt").unlink()
    assert contents(build(tmp_path / "out", *both, validation=0).dataset) == expected


# --- a store that does not answer as it should ---------------------------------------------------------------


def one_answer(status: int) -> type[http.server.BaseHTTPRequestHandler]:
    """An S3 server that has one answer to everything."""
    code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
    content = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no\nand no</Message></Error>'.encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    return Handler


@pytest.mark.parametrize(
    ("status", "place"),
    [
        (403, "corpus"),
        (403, "out"),
        pytest.param(503, "out", marks=pytest.mark.slow),
        pytest.param(503, "corpus", marks=pytest.mark.slow),
        pytest.param(500, "corpus", marks=pytest.mark.slow),
        pytest.param(500, "out", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_only_refuses_is_told_in_one_line_and_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, place: str
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text(some_text(1))
    url = "s3://bucket/there"
    with serving(one_answer(status)) as endpoint:
        monkeypatch.setenv("GPTPIPE_S3_ENDPOINT", endpoint)
        monkeypatch.setenv("GPTPIPE_S3_ACCESS_KEY", "key")
        monkeypatch.setenv("GPTPIPE_S3_SECRET_KEY", "secret")
        begin_again()
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            build(tmp_path / "out", url) if place == "corpus" else build(url, tmp_path / "corpus")
        seconds = time.monotonic() - began
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.where.startswith(url)
    assert seconds < 60
    if status == 403:
        assert "GPTPIPE_S3_SECRET_KEY" in caught.value.hint
        assert seconds < 10
    assert not list(tmp_path.rglob("manifest.json"))
