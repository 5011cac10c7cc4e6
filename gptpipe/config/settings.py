"""Where things are: the environment and `.env`, prefix GPTPIPE_. Every field stands in `.env.example`."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gptpipe.cores import allowed_cores, usable_cores
from gptpipe.errors import UserError
from gptpipe.wording import without_password


class Settings(BaseSettings):
    """Places and credentials. Nothing here changes what a run computes."""

    model_config = SettingsConfigDict(env_prefix="GPTPIPE_", env_file=".env", extra="ignore", env_ignore_empty=True)

    home: Path = Field(Path(".gptpipe"), description="Local folder for databases, caches and running jobs")
    storage: str | None = Field(
        None, description="Folder or s3:// URL for datasets, checkpoints and results; by default <home>/storage"
    )
    mlflow_uri: str | None = Field(None, description="MLflow tracking server or database; by default SQLite in <home>")
    mlflow_auth: SecretStr | None = Field(
        None, description="user:password that the MLflow server asks for; empty where it asks nobody"
    )
    mlflow_ui: str | None = Field(
        None, description="Address at which a browser finds MLflow; by default the tracking server's"
    )
    mlflow_artifacts: str | None = Field(
        None,
        description="Artifact root of a new MLflow experiment; "
        "by default <storage>/mlflow for SQLite, the server's own otherwise",
    )
    sweeps_uri: str | None = Field(
        None,
        description="Database of the sweeps' studies, as SQLAlchemy names it, and not MLflow's own; "
        "by default SQLite in <home>",
    )
    experiment: str = Field("gptpipe", description="MLflow experiment that runs are logged to")
    cache_gigabytes: float = Field(50.0, description="Most that decoded tokens may take in <home>/cache, in GB", gt=0)
    task_runner: Literal["processes", "dask", "ray"] = Field(
        "processes", description="Where the tokenize flow's tasks run: processes of this machine, Dask or Ray"
    )
    task_runner_address: str | None = Field(
        None, description="Scheduler of a Dask or Ray cluster that runs; empty starts one on this machine"
    )
    s3_endpoint: str | None = Field(
        None,
        description="Endpoint of an S3-compatible server, for example http://10.0.0.1:8333; empty is AWS",
        pattern=r"^https?://[^/\s]+",
    )
    s3_access_key: str | None = Field(None, description="S3 access key; empty uses the usual AWS sources")
    s3_secret_key: SecretStr | None = Field(None, description="S3 secret key")
    s3_region: str | None = Field(None, description="S3 region")
    stack_host: str = Field("127.0.0.1", description="Address that the servers of `gptpipe up` listen on")
    stack_names: str = Field(
        "",
        description="Other names, separated by commas, that browsers and machines call these servers by; "
        "a request for any other is refused",
        pattern=r"^[^\s/]*(, ?[^\s/]+)*$",
    )
    prefect_port: int = Field(4200, description="Port of the Prefect server of `gptpipe up`", gt=0, lt=65536)
    mlflow_port: int = Field(5000, description="Port of the MLflow server of `gptpipe up`", gt=0, lt=65536)
    s3_port: int = Field(8333, description="Port of the object store of `gptpipe up`", gt=0, lt=65536)
    postgres_port: int = Field(54320, description="Port of the PostgreSQL of `gptpipe up`", gt=0, lt=65536)
    gang_address: str | None = Field(
        None,
        description="Address under which the nodes of a training reach its parent on this machine; "
        "by default the one on the route to the Prefect server",
    )
    gang_ports: str = Field(
        "29400-29499", description="Ports that parents of trainings on several nodes take", pattern=r"^\d{1,5}-\d{1,5}$"
    )
    node_address: str | None = Field(
        None,
        description="Address under which other nodes reach the ranks of this machine; "
        "by default the one on the route to the training's parent",
    )
    jobset: Path | None = Field(
        None,
        description="YAML of a Kubernetes JobSet whose pods are the nodes of a training; empty is workers of Prefect",
    )
    jobset_nodes: int = Field(8, description="Most nodes that such trainings may have at once", ge=1)
    nightly_cron: str | None = Field(
        None, description="When `retrain/nightly` runs, as a cron expression; empty is never", pattern=r"^\S+( \S+){4}$"
    )
    watch_cron: str | None = Field(
        None, description="When `watch-corpora` looks for new text, likewise; empty is never", pattern=r"^\S+( \S+){4}$"
    )
    champion_cron: str | None = Field(
        None,
        description="When `score-champion` scores the model that serves on new text, likewise; empty is never",
        pattern=r"^\S+( \S+){4}$",
    )
    clean_cron: str | None = Field(
        None,
        description="When `clean` removes what is older than 30 days and unused, likewise; empty is never",
        pattern=r"^\S+( \S+){4}$",
    )
    keep_versions: int | None = Field(
        None,
        ge=1,
        description="Of each registered model `clean` leaves this many versions, and those with an alias; empty is all",
    )
    timezone: str = Field("UTC", description="Time zone of the cron expressions, for example Europe/Berlin")
    retrain_config: Path | None = Field(
        None,
        description="YAML file with what the deployments train, as for --config; by default preset nano-modern",
    )
    same_training: Literal["queue", "drop"] = Field(
        "queue", description="What happens to a retraining that is asked for while the same one runs: it waits, or ends"
    )
    webhook: SecretStr | None = Field(
        None,
        description="Address that gets a POST with JSON when a model becomes champion, and when one does not",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """An address of a database may hold its password."""
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value

    @field_validator("mlflow_uri", "mlflow_ui", "s3_endpoint")
    @classmethod
    def _addresses_are_whole_and_hold_no_password(cls, value: str | None) -> str | None:
        """A password would stand in logs, links and reports."""
        if value is not None and value.startswith(("http://", "https://")):
            if not is_address(value):
                raise ValueError("no address of a server: it is like http://10.0.0.1:5000")
            if "@" in urlsplit(value).netloc:
                raise ValueError(
                    "user and password do not belong into an address: set GPTPIPE_MLFLOW_AUTH or the S3 keys"
                )
        return value

    @field_validator("mlflow_auth")
    @classmethod
    def _auth_has_both(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(value.get_secret_value().partition(":")):
            raise ValueError("give a user and a password, with : between them")
        return value

    @field_validator("webhook")
    @classmethod
    def _webhook_is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s]+\S*", value.get_secret_value()):
            raise ValueError("an address begins with http:// or https://")
        return value

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    def as_environment(self) -> dict[str, str]:
        """What was set by hand, secrets too, for a process that reads no `.env`."""
        variables = {}
        for name in sorted(self.model_fields_set & type(self).model_fields.keys()):
            value = getattr(self, name)
            if value is not None:
                plain = value.get_secret_value() if isinstance(value, SecretStr) else value
                variables[f"GPTPIPE_{name.upper()}"] = str(plain)
        return variables

    @property
    def gang_port_range(self) -> range:
        first, _, last = self.gang_ports.partition("-")
        return range(int(first), int(last) + 1)

    @property
    def prefect_host(self) -> str:
        """The host of the Prefect server; empty if there is none."""
        url = os.environ.get("PREFECT_API_URL", "")
        return (urlsplit(url).hostname or "") if is_address(url) else ""

    @property
    def stack_name_list(self) -> list[str]:
        return [name for each in self.stack_names.split(",") if (name := each.strip())]

    @property
    def stack_path(self) -> Path:
        """Where `gptpipe up` keeps its servers' files."""
        return self.home_path / "stack"

    @property
    def webhook_url(self) -> str | None:
        """GPTPIPE_WEBHOOK as it is, with what it holds of a password."""
        return self.webhook.get_secret_value() if self.webhook else None

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gigabytes * 1e9)

    @property
    def storage_url(self) -> str:
        given = self.storage or str(self.home_path / "storage")
        return given if given.endswith("://") else given.rstrip("/")  # one without a bucket is refused where it is used

    @property
    def tracking_uri(self) -> str:
        return self.mlflow_uri or f"sqlite:///{self.home_path / 'mlflow.db'}"

    @property
    def sweeps_database(self) -> str:
        """GPTPIPE_SWEEPS_URI, with what it holds of a password."""
        return self.sweeps_uri or f"sqlite:///{self.home_path / 'sweeps.db'}"

    @property
    def artifact_root(self) -> str | None:
        """Where a new experiment keeps its artifacts; None leaves it to the tracking server."""
        if self.mlflow_artifacts:
            return self.mlflow_artifacts.rstrip("/")
        return f"{self.storage_url}/mlflow" if self.tracking_uri.startswith("sqlite:") else None


STACK_FILE = "stack.env"  # in `stack_path`, while the stack is up: how it is reached


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once: the environment, before `.env`, before the stack that is up.

    Raises:
        UserError: a variable has a value that cannot be used, or a file cannot be read.
    """
    own = Path(".env")
    try:
        _check_readable(own)
        stack = Settings().stack_path / STACK_FILE
        _check_readable(stack)
        return Settings(_env_file=(stack, own))
    except ValidationError as error:
        first = error.errors()[0]
        name = "GPTPIPE_" + "_".join(str(part) for part in first["loc"]).upper()
        raise UserError(first["msg"].removeprefix("Value error, "), where=name, hint="see .env.example") from None


def _check_readable(file: Path) -> None:
    """A UserError where there is a file of settings, and it cannot be read."""
    try:
        if file.is_file():
            file.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise UserError(f"not UTF-8 ({error})", where=str(file.absolute()), hint="save it as UTF-8") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError(problem, where=str(file.absolute()), hint="check the permissions of the path") from None


def reload_settings() -> Settings:
    """Read the environment again (a command line option changed it)."""
    settings.cache_clear()
    return settings()


def is_address(url: str) -> bool:
    """Whether this is http:// or https:// with a host, and a port that can be one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


# What child processes and libraries must see before they are imported. Nothing reports home.
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # its in-process server took 14 s to start on two cores that did nothing else; Prefect gives up after 20
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # a thread that warns (the lease's) is no flow run, and Prefect would warn about the warning
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is the command's answer
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # what processes say to one another is UTF-8, whatever the terminal is
    "PYTHONUTF8": "1",
    # a file of the user's called random.py in the current folder must not take the place of Python's
    "PYTHONSAFEPATH": "1",
    # MLflow's own retries last minutes; what follows a training tries again by itself
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # newer AWS clients append trailing checksums, which some S3 servers refuse; we compute SHA-256 ourselves
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_home(home: Path) -> None:
    """Make the local folder, which nobody else may look into, and see that it can be written.

    Prefect stays silent where it cannot. What runs as another user, PostgreSQL where root starts it, may pass through.
    """
    if "?" in str(home):
        raise UserError(
            "a ? in the path: the address of a SQLite database would end there",
            where=f"GPTPIPE_HOME={home}",
            hint="choose another folder with GPTPIPE_HOME",
        )
    try:
        home.mkdir(mode=0o700 if os.geteuid() else 0o711, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(home), hint="choose another folder with GPTPIPE_HOME"
        ) from None


def prepare_environment() -> None:
    """Set the environment that Prefect, MLflow and the S3 clients read, unless the user has set it."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        # threads that wait for one another spin; beside other work for as long as the one that is waited for is not run
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if (cores := usable_cores()) < allowed_cores():  # torch does not see a control group's quota
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    for name in ("NO_PROXY", "no_proxy"):  # servers of this machine are never asked through a company's proxy
        known = [part for part in os.environ.get(name, "").split(",") if part.strip()]
        os.environ[name] = ",".join([*known, *(host for host in LOOPBACK if host not in known)])
    # Prefect asks for a folder that machines without a desktop session have not
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    here = settings()
    written = {**dotenv_values(here.stack_path / STACK_FILE), **dotenv_values(".env")}
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        if given := written.get(name):
            os.environ.setdefault(name, given)
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.setdefault("PREFECT_HOME", str(here.home_path / "prefect"))
    user, _, password = here.mlflow_auth.get_secret_value().partition(":") if here.mlflow_auth else ("", "", "")
    places: dict[str, str | None] = {
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        "GPTPIPE_HOME": str(here.home_path),
        "MLFLOW_S3_ENDPOINT_URL": here.s3_endpoint,
        "AWS_ENDPOINT_URL_S3": here.s3_endpoint,
        "AWS_ACCESS_KEY_ID": here.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": here.s3_secret_key.get_secret_value() if here.s3_secret_key else None,
        "AWS_DEFAULT_REGION": here.s3_region,
    }
    if here.s3_access_key:  # one of another key's
        os.environ.pop("AWS_SESSION_TOKEN", None)
    for name, place in places.items():
        if place:
            os.environ[name] = place
