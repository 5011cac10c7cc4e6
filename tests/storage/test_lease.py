"""Whether a process that left its description behind still runs."""

from __future__ import annotations

import json
import subprocess
import sys

from gptpipe.storage.lease import lives, this_process

PROGRAM = "import json; from gptpipe.storage.lease import this_process; print(json.dumps(this_process()))"


def test_a_process_lives_is_gone_or_cannot_be_seen() -> None:
    here = this_process()
    assert lives(here) is True
    assert lives({**here, "started": here["started"] - 100}) is False  # another one took its number
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert lives({**here, "pid": json.loads(ended.stdout)["pid"]}) is False
    assert lives({**here, "host": "another"}) is None
    assert lives({**here, "space": "pid:[1]"}) is None  # a container of the same host name: its numbers are its own
