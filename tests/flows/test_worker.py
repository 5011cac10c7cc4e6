"""The worker's process, asked to end again and again while it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# a thread of a run's heartbeat may keep the interpreter from ending for a while: so does this one
WORKER = """
import asyncio, sys, threading, time
from flows.machines import worker


class Ending:
    def __init__(self, **given):
        pass

    async def start(self, **given):
        print("started", flush=True)
        await asyncio.sleep(60)


worker.SavingWorker = Ending
sys.argv = ["worker", "--pool", "any", "--name", "any"]
worker.main()
threading.Thread(target=time.sleep, args=(3,)).start()
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_it_ends_leave_no_trace(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None

    def wait_for(word: str) -> None:
        for line in process.stdout or ():
            if line.strip() == word:
                return
        raise AssertionError(process.communicate())

    wait_for("started")
    process.send_signal(number)
    wait_for("ended")
    for _ in range(5):
        process.send_signal(number)
        time.sleep(0.1)
    _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert process.returncode == 0
