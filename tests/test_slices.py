"""Short time slices: all threads of a process have them, new ones too, and what it starts; its priority stays."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gptpipe.slices import slice_seconds

PROBE = """
import json, os, subprocess, sys, threading
from gptpipe.slices import shorten_slices, slice_seconds

os.nice(3)
found = {"before": slice_seconds()}
begun, go = threading.Event(), threading.Event()
def there() -> None:
    begun.set()
    go.wait()
    found["a thread that was there"] = slice_seconds()
old = threading.Thread(target=there)
old.start()
begun.wait()
found["taken"] = shorten_slices()
go.set()
old.join()
new = threading.Thread(target=lambda: found.update({"a new thread": slice_seconds()}))
new.start()
new.join()
found["this thread"] = slice_seconds()
again = "from gptpipe.slices import slice_seconds; print(slice_seconds())"
found["a child"] = float(subprocess.run([sys.executable, "-c", again], capture_output=True, text=True).stdout)
found["nice"] = os.nice(0)
print(json.dumps(found))
"""


@pytest.mark.skipif(slice_seconds() is None, reason="this system does not say how long a time slice is")
def test_every_thread_and_child_has_them_and_the_priority_stays() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["taken"]
    assert found["nice"] == 3
    shown = {found[name] for name in ("a thread that was there", "a new thread", "this thread", "a child")}
    assert shown == {1e-4}
    assert found["before"] != 1e-4
