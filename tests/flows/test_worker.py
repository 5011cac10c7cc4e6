"""The worker's process, asked to end again and again while it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

# a thread of the event loop that nobody ends, as a second signal leaves one, keeps Python from ending for ever
WORKER = """
import asyncio, sys, threading
from flows.machines import worker
from prefect.logging.handlers import APILogWorker


class Ending:
    def __init__(self, **given):
        pass

    async def start(self, **given):
        threading.Thread(target=threading.Event().wait).start()
        APILogWorker.instance().send({"level": 20, "message": "a last line"})
        print("started", flush=True)
        try:
            await asyncio.sleep(60)
        finally:
            print("ending", flush=True)
            await asyncio.sleep(1)


worker.SavingWorker = Ending
sys.argv = ["worker", "--pool", "any", "--name", "any"]
worker.main()
"""


def test_signals_while_it_ends_leave_no_trace() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"},  # nobody is there
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None

    def wait_for(word: str) -> None:
        for line in process.stdout or ():
            if line.strip() == word:
                return
        raise AssertionError(process.communicate())

    try:
        wait_for("started")
        process.send_signal(signal.SIGTERM)
        wait_for("ending")
        for number in 3 * [signal.SIGINT, signal.SIGTERM]:
            process.send_signal(number)
            time.sleep(0.1)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert "never awaited" not in err
    assert process.returncode == 0
