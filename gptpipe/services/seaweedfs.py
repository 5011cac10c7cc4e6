"""SeaweedFS, the object store of the local stack and of the tests: its binary and its command line."""

from __future__ import annotations

import hashlib
import shutil
import sys
from itertools import count
from pathlib import Path
from typing import Any

from gptpipe.wording import first_line

SERVICES = ("master", "filer", "volume", "s3")  # each listens on a port for HTTP and one for gRPC
_DATABASES = 8  # of its "leveldb2"


def find_weed() -> str | None:
    """The server's binary, beside this Python or on the path; None if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def weed_command(
    weed: str, data: Path, *, logs: Path, host: str, ports: dict[str, int], sockets: Path | None = None
) -> list[str]:
    """One process with all services. The environment gives the keys, as for AWS.

    `weed server`, not `weed mini`: the latter's maintenance worker looks for an administration server that is not
    started here, and writes into the log every five seconds that nobody answers.

    Its only master is elected within a second or two when it starts again; by default that takes 10 to 20 s.

    Args:
        ports: of each service, and of `<service>.grpc`.
        sockets: where its UNIX sockets go, whose paths must be short; by default the folder for temporary files.
    """
    command = [
        # filer and master take requests of anybody over HTTP, to remove a bucket for one: S3 does without
        weed, f"-logdir={logs}", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.ip.bind={host}",
        "-disableHttp=true",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=128", "-master.electionTimeout=1s",
        "-volume.max=0", "-volume.preStopSeconds=0",
        "-filer", "-s3", "-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    if sockets:
        command += [f"-filer.localSocket={sockets / 'filer'}", f"-s3.localSocket={sockets / 's3'}"]
    for name in SERVICES:
        command += [f"-{name}.port={ports[name]}", f"-{name}.port.grpc={ports[f'{name}.grpc']}"]
    return command


def bucket_problem(endpoint: str, access_key: str, secret_key: str, bucket: str) -> str:
    """What keeps a bucket, made here if it is not there, from taking an object; empty if nothing does."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client: Any = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(connect_timeout=1, read_timeout=10, retries={"max_attempts": 1}, proxies={}),
    )
    try:
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            client.create_bucket(Bucket=bucket)
        for key in (".ready", *_probes(bucket)):
            client.put_object(Bucket=bucket, Key=key, Body=b"ready")  # its port opens before it can write
    except (BotoCoreError, ClientError) as error:
        return first_line(error)
    return ""


def _probes(bucket: str) -> list[str]:
    """Names of objects of which each stands in another of the databases that SeaweedFS keeps its names in.

    The last byte of the MD5 of an object's folder chooses it. Each has a journal of its own, and a disk that was full
    leaves only those stuck that were written to.
    """
    probes: dict[int, str] = {}
    for number in count():
        if len(probes) == _DATABASES:
            break
        folder = f".probe/{number}"
        digest = hashlib.md5(f"/buckets/{bucket}/{folder}".encode(), usedforsecurity=False).digest()
        probes.setdefault(digest[-1] % _DATABASES, f"{folder}/ready")
    return list(probes.values())


def port_names() -> list[str]:
    """What `weed_command` needs a port for."""
    return [*SERVICES, *(f"{name}.grpc" for name in SERVICES)]
