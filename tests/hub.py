"""A server of this machine that speaks the Hugging Face hub's protocol for one repository: there is no network."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Its description, its tree, its files whole and in ranges; anything else is not there."""

    protocol_version = "HTTP/1.1"
    name: str  # datasets/OWNER/NAME or models/OWNER/NAME
    files: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(200, json.dumps([self._entry(path) for path in asked["paths"] if path in self.files]).encode())

    def _answer(self) -> None:
        path, api = self.path.split("?")[0], f"/api/{self.name}"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": file} for file in self.files]
            about = {"id": self.name.partition("/")[2], "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(about).encode())
        elif path.startswith(f"{api}/tree/"):
            self._send(200, json.dumps([self._entry(file) for file in self.files]).encode())
        elif (file := self._file(path)) in self.files:
            self._send_file(self.files[file])
        else:
            self._send(404, b"{}", **{"X-Error-Code": "EntryNotFound" if file else "RepoNotFound"})

    def _file(self, path: str) -> str:
        """Those of models lie at the top, those of data sets below /datasets."""
        return path.partition(f"/{self.name.removeprefix('models/')}/resolve/")[2].partition("/")[2]

    def _send_file(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if not wanted:
            self._send(200, content, **headers)
            return
        first, _, last = wanted.partition("-")
        begin, end = int(first), min(int(last or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        self._send(206, content[begin : end + 1], **headers)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}


def hub_of(repository: str, content: dict[str, bytes]) -> type[Hub]:
    """A handler for the repository datasets/OWNER/NAME or models/OWNER/NAME."""

    class OneRepository(Hub):
        name = repository
        files = content

    return OneRepository


def gptpipe_with_hub(url: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: the hub's address is read when its package is imported.

    Args:
        home: a folder for the hub's cache.
    """
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [str(Path(sys.executable).with_name("gptpipe")), *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
