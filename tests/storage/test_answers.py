"""What a web server answers need not end."""

from __future__ import annotations

import http.server
import threading
from contextlib import suppress

import pytest

from gptpipe import storage
from gptpipe.errors import UserError


class Endless(http.server.BaseHTTPRequestHandler):
    """Sends zeros until nobody takes them."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 20))

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_an_answer_that_does_not_end_is_refused() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/config.json"
        with pytest.raises(UserError, match="more than 268 MB") as refused:
            storage.read_bytes(url)
        server.shutdown()
    assert refused.value.where == url
