"""The worker's process, asked to end again and again while it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# threads of a run's heartbeat may keep the interpreter from ending for a while: so does this one
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
threading.Thread(target=time.sleep, args=(3,)).start()
sys.argv = ["worker", "--pool", "any", "--name", "any"]
worker.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_it_ends_leave_no_trace(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "started" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    for _ in range(8):
        process.send_signal(number)
        time.sleep(0.15)
    _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert process.returncode == 0
