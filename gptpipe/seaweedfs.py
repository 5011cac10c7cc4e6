"""SeaweedFS, the object store of the local stack and of the tests: its binary and its command line."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

SERVICES = ("master", "filer", "volume", "s3", "admin")  # each listens on a port for HTTP and one for gRPC


def find_weed() -> str | None:
    """The server's binary, beside this Python or on the path; None if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def weed_command(
    weed: str, data: Path, *, logs: Path, host: str, ports: dict[str, int], sockets: Path | None = None
) -> list[str]:
    """One process with all services. The environment gives keys (as for AWS) and the bucket (S3_BUCKET) to make.

    Args:
        ports: of each service, and of `<service>.grpc`.
        sockets: where its UNIX sockets go, whose paths must be short; by default the folder for temporary files.
    """
    reached = "127.0.0.1" if host == "0.0.0.0" else host  # its services talk to one another under this address
    command = [
        weed, f"-logdir={logs}", "mini", f"-dir={data}", f"-ip={reached}", f"-ip.bind={host}",
        "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
    ]  # fmt: skip
    if sockets:
        command += [f"-filer.localSocket={sockets / 'filer'}", f"-s3.localSocket={sockets / 's3'}"]
    for name in SERVICES:
        command += [f"-{name}.port={ports[name]}", f"-{name}.port.grpc={ports[f'{name}.grpc']}"]
    return command


def port_names() -> list[str]:
    """What `weed_command` wants a port for."""
    return [*SERVICES, *(f"{name}.grpc" for name in SERVICES)]


def main() -> None:
    """`python -m gptpipe.seaweedfs`: the server in this process's place, for a container of its own."""
    parser = argparse.ArgumentParser(prog="gptpipe.seaweedfs")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--s3-port", type=int, default=8333)
    parser.add_argument("--inner-ports", type=int, default=18080, help="the first of the inner services' ports")
    given = parser.parse_args()
    ports = {name: given.inner_ports + number for number, name in enumerate(port_names())} | {"s3": given.s3_port}
    logs = given.data / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    weed = find_weed()
    if weed is None:
        sys.exit("gptpipe.seaweedfs: not installed: pip install 'gptpipe[servers]'")
    os.execv(weed, weed_command(weed, given.data, logs=logs, host=given.host, ports=ports))


if __name__ == "__main__":
    main()
