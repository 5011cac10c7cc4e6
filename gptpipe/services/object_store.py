"""The object store as a program: SeaweedFS, its bucket, and a watch that ends it where it takes nothing any more.

`python -m gptpipe.services.object_store`, of the local stack and of a container of its own. After its disk was full
SeaweedFS refuses to be written to, though there is room again, until it starts again. Whoever keeps the program alive,
supervisord or a container's restart policy, then starts it: a training at night does not wait for a person.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from gptpipe.extras import install_hint
from gptpipe.guard import EVERYWHERE
from gptpipe.services.certificates import close_inner_ports
from gptpipe.services.seaweedfs import bucket_problem, find_weed, port_names, weed_command

_START_PROBE_SECONDS = 0.2
_PROBE_SECONDS = 60.0  # between two looks at a store that is well
_ILL_PROBE_SECONDS = 5.0
_STOP_SECONDS = 25.0  # its streams take fifteen to end
_LEAST_SHARE, _LEAST_BYTES = 0.02, 64 << 20  # with less room it may rightly refuse: SeaweedFS keeps 1 % free


def watch(endpoint: str, bucket: str, data: Path, patience: float) -> None:
    """Make the bucket, then try to write to it, until it takes nothing for so long; each change is told in a line.

    A store that has taken nothing yet is left alone, however long that lasts: starting it again would not help.

    Args:
        data: what it keeps is there; while that disk is full, the store is right to refuse.
        patience: seconds.
    """
    keys = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    began = time.monotonic()
    told: str | None = None  # the problem; None until there is something to tell
    has_taken, ill_since = False, 0.0
    while True:
        now = time.monotonic()
        problem = bucket_problem(endpoint, *keys, bucket)
        if problem != told and (not problem or has_taken or now - began > patience):  # it takes seconds to start
            _say(f"takes no objects: {problem}" if problem else "takes objects")
            told = problem
        has_taken = has_taken or not problem
        if not problem or not _has_room(data):
            ill_since = 0.0
        elif not ill_since:
            ill_since = now
        elif has_taken and now - ill_since > patience:
            return
        is_starting = not has_taken and now - began < patience
        pause = _START_PROBE_SECONDS if is_starting else _ILL_PROBE_SECONDS if problem else _PROBE_SECONDS
        time.sleep(min(pause, patience))


def _has_room(data: Path) -> bool:
    disk = shutil.disk_usage(data)
    return disk.free > max(_LEAST_SHARE * disk.total, _LEAST_BYTES)


def _say(words: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} the object store {words}", file=sys.stderr, flush=True)


def _end(server: int) -> None:
    """End the store; this process goes with it."""
    os.kill(server, signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os.kill(server, signal.SIGKILL)


def _ports_by_name(given: str) -> dict[str, int]:
    numbers, names = [int(number) for number in given.split(",")], port_names()
    if len(numbers) == 1:
        numbers = [numbers[0] + number for number in range(len(names))]
    return dict(zip(names, numbers, strict=True))


def main() -> None:
    """Become SeaweedFS, after the watch has been started as its child; the environment gives bucket and keys."""
    parser = argparse.ArgumentParser(prog="gptpipe.services.object_store")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="where its certificates are; by default with the data")
    parser.add_argument("--logs", type=Path, help="by default with the data")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--s3-port", type=int, default=8333)
    inner_ports = "the first of the inner services' ports, or all of them, with commas"
    parser.add_argument("--inner-ports", type=_ports_by_name, default="18080", help=inner_ports)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds for which it may take no objects")
    parser.add_argument("--watch", type=int, help="the store's process: only watch it")
    given = parser.parse_args()
    bucket = os.environ.get("S3_BUCKET", "")
    if not bucket:
        parser.error("S3_BUCKET is not set: name the bucket that is to be there")
    address = "127.0.0.1" if given.host in EVERYWHERE else given.host
    if given.watch:
        from gptpipe.launch.signals import end_with

        end_with(given.watch)
        watch(f"http://{address}:{given.s3_port}", bucket, given.data, given.patience)
        _say(f"took no objects for {given.patience:g} s though its disk has room: it is started again")
        _end(given.watch)
        return
    weed = find_weed()
    if weed is None:
        sys.exit(f"gptpipe.services.object_store: not installed: {install_hint('servers')}")
    home, logs = given.home or given.data, given.logs or given.data / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    close_inner_ports(home)
    ports = given.inner_ports | {"s3": given.s3_port}
    command = weed_command(weed, given.data, logs=logs, host=given.host, ports=ports)
    subprocess.Popen([sys.executable, "-m", __spec__.name, *sys.argv[1:], "--watch", str(os.getpid())])
    os.execve(weed, command, {**os.environ, "HOME": str(home)})


if __name__ == "__main__":
    main()
