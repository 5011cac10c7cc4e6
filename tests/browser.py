"""A headless Chromium, driven over its debugging protocol as a person would use it: open, click, type, look."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# React keeps a field's value of its own: it hears of a change only by the element's native setter and an event
_TYPE = """(selector, text) => {
  const field = document.querySelector(selector);
  const kind = field.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;
  Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, text);
  field.dispatchEvent(new Event('input', {bubbles: true}));
  field.dispatchEvent(new Event('change', {bubbles: true}));
}"""
_CLICK = """(selector, text) => {
  const all = [...document.querySelectorAll(selector)].filter(e => e.textContent.trim().startsWith(text));
  if (all.length) all[all.length - 1].click();
  return all.length;
}"""


class Browser:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._number = connection, 0

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def run(self, function: str, *arguments: Any) -> Any:
        """What a JavaScript function returns."""
        called = f"({function})({', '.join(json.dumps(each) for each in arguments)})"
        answer = self.ask("Runtime.evaluate", expression=called, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def text(self) -> str:
        return str(self.run("() => document.body ? document.body.innerText : ''"))

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Until the page shows these words."""
        until = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < until, f"{words!r} is not on the page:\n{self.text()[:2000]}"
            time.sleep(0.3)

    def click(self, text: str, selector: str = "button, a") -> None:
        """Click the last button or link whose text begins so."""
        assert self.run(_CLICK, selector, text), f"nothing to click: {text!r}\n{self.text()[:2000]}"

    def type(self, selector: str, text: str) -> None:
        """Give a field this text."""
        self.run(_TYPE, selector, text)

    def picture(self, file: Path) -> None:
        """Save what is seen as a PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`; it is gone afterwards."""
    assert CHROMIUM
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--window-size={width},{height}", f"--user-data-dir={folder}", "--remote-debugging-port=0"]
    with (folder.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen([CHROMIUM, *options, "about:blank"], stdout=log, stderr=log)
    try:
        port = _port(folder / "DevToolsActivePort", process)
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
            page = next(each for each in json.load(reply) if each["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text().strip()):
        assert process.poll() is None, "chromium ended"
        assert time.monotonic() < until, "chromium does not start"
        time.sleep(0.1)
    return int(file.read_text().split()[0])
