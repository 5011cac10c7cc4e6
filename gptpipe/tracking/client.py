"""The tracking server: connected to, asked for a run, and what it refuses in a line."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptpipe import storage
from gptpipe.config.settings import make_home, settings
from gptpipe.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)


TRAINING_TAG = "gptpipe.training"
# MLflow 3 opens an experiment without this in its view for agents, where no curve is drawn
_VIEW = "workflowType=machine_learning"
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


def connect() -> MlflowClient:
    """A client of the tracking server or database; `import mlflow` happens here, at first use."""
    from mlflow import MlflowClient

    uri = settings().tracking_uri
    if uri.startswith("sqlite:"):
        if not settings().mlflow_uri:
            make_home()
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        for name in ("alembic", "mlflow.store.db.utils"):  # its database migrations, a line each
            logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient) -> str:
    """The experiment that runs go to, made when it is not there.

    Raises:
        UserError: a person has deleted it.
    """
    from mlflow.exceptions import MlflowException

    name = settings().experiment
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        address = f"MLFLOW_TRACKING_URI={shlex.quote(settings().tracking_uri)} "
        restore = f"{address}mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(
            "this MLflow experiment was deleted",
            where=f"GPTPIPE_EXPERIMENT={name}",
            hint=f"bring it back with `{restore}`, or name another one",
        )
    if found is not None:
        return str(found.experiment_id)
    root = settings().artifact_root
    try:
        place = storage.as_uri(root) if root else None
        return str(client.create_experiment(name, artifact_location=place, tags=_MODEL_TRAINING))
    except MlflowException:  # another run made it at the same moment
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def is_away(error: BaseException) -> bool:
    """Whether this says that the server, or the database, cannot be reached or is not itself now."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        return status >= 500 or error.error_code == "REQUEST_LIMIT_EXCEEDED"
    if isinstance(error, SQLAlchemyError):
        return "locked" in str(error)
    return isinstance(error, (RequestException, ConnectionError, TimeoutError))


def in_a_line(error: Exception) -> Exception:
    """What MLflow refused, in one line for the user; any other error is a fault of ours and stays as it is."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
        return error
    hint = "`gptpipe doctor` tries the server; what is trained is found again"
    return UserError(f"MLflow refused: {first_line(error)}", where=settings().tracking_uri, hint=hint)


def first_line(error: BaseException) -> str:
    return str(getattr(error, "message", "") or error or type(error).__name__).strip().splitlines()[0][:300]


def web_address() -> str:
    """Where MLflow's pages are; those of `mlflow ui` where there is no server."""
    uri = settings().mlflow_ui or settings().tracking_uri
    return uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


@dataclass(frozen=True)
class RunLink:
    """Where a run is looked at."""

    run_id: str
    experiment_id: str

    @property
    def url(self) -> str:
        """Its page, where a server shows it; the path of the page below `mlflow ui` otherwise."""
        return f"{web_address()}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{_VIEW}"

    @property
    def how_to_open(self) -> str:
        uri = settings().tracking_uri
        if uri.startswith("http"):
            return self.url
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}   then open {self.url}"

    def artifact_url(self, name: str) -> str:
        """The page that shows one of its artifacts."""
        return f"{self.url.split('?')[0]}/artifacts/{name}?{_VIEW}"

    @property
    def compare_url(self) -> str:
        """The page that shows the experiment's runs side by side."""
        return self.url.split("/runs/")[0] + f"/runs?compareRunsMode=CHART&{_VIEW}"


def find_run(client: MlflowClient, training: str) -> Run | None:
    """The run of the training in this folder, or None."""
    # a filter knows no quotation mark within quotation marks: `_` stands for any character, and the rest is seen here
    pattern = training.replace("'", "_").replace("\\", "_")
    same = f"tags.`{TRAINING_TAG}` {'=' if pattern == training else 'LIKE'} '{pattern}'"
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id(client)], same, max_results=100, page_token=token)
        for run in page:
            if run.data.tags[TRAINING_TAG] == training:
                return run
        if not (token := page.token):
            return None


@contextmanager
def reaching_mlflow() -> Iterator[None]:
    """A server that does not answer, or refuses, is the user's to fix: one line instead of a client's traceback."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_away(error):
            raise in_a_line(error) from error
        raise UserError(
            f"MLflow cannot be reached: {first_line(error)}",
            where=settings().tracking_uri,
            hint="`gptpipe doctor` tries the server; what is trained is found again",
        ) from error
