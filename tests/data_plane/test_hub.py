"""Proves that hf:// datasets are listed and read, from a server that speaks the hub's protocol: there is no network."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.data_plane.conftest import serving
from tests.data_plane.test_build import build, contents, some_text

FILES = {
    "README.md": b"# A dataset\n\nof three files.\n",
    "data/lines.jsonl": b"".join(json.dumps({"text": some_text(i)}).encode() + b"\n" for i in range(20)),
    "data/large.txt": some_text(1, 1_300_000).encode(),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """One dataset, someone/texts: its description, its tree, its files whole and in ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(200, json.dumps([entry(path) for path in asked["paths"] if path in FILES]).encode())

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/datasets/someone/texts" or path.startswith("/api/datasets/someone/texts/revision/"):
            self._send(200, json.dumps({"id": "someone/texts", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith("/api/datasets/someone/texts/tree/"):
            self._send(200, json.dumps([entry(file) for file in FILES]).encode())
        elif (file := path.partition("/datasets/someone/texts/resolve/")[2].partition("/")[2]) in FILES:
            self._send_file(FILES[file])
        else:
            self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def _send_file(self, content: bytes) -> None:
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if not wanted:
            self._send(200, content, **{"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT})
            return
        first, _, last = wanted.partition("-")
        begin, end = int(first), min(int(last or len(content)), len(content) - 1)
        self._send(206, content[begin : end + 1], **{"Content-Range": f"bytes {begin}-{end}/{len(content)}"})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def entry(path: str) -> dict[str, object]:
    return {"type": "file", "oid": f"{len(FILES[path]):040x}", "size": len(FILES[path]), "path": path}


def tokenized(tmp_path: Path, url: str, corpus: str, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: the hub's address is read when its package is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [str(Path(sys.executable).with_name("gptpipe")), "tokenize", "--corpus", corpus, "--json", *more]
    return subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=environment, check=False
    )


def test_a_dataset_of_the_hub_is_the_dataset_of_its_files(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_bytes(content)
    here = build(tmp_path / "here", tmp_path / "corpus", shard_megabytes=1, validation=0)
    with serving(Hub) as url:
        made = tokenized(
            tmp_path, url, "hf://datasets/someone/texts", "--set", "data.shard_megabytes=1", "--validation", "0"
        )
    assert made.returncode == 0, made.stdout + made.stderr
    answer = json.loads(made.stdout)
    assert answer["id"] == here.id
    assert contents(answer["dataset"]) == contents(here.dataset)


def test_a_dataset_that_the_hub_has_not_is_one_line(tmp_path: Path) -> None:
    with serving(Hub) as url:
        made = tokenized(tmp_path, url, "hf://datasets/someone/else")
    assert made.returncode == 2
    assert json.loads(made.stdout)["error"]["where"] == "hf://datasets/someone/else"
    assert made.stderr.count("\n") == 1
