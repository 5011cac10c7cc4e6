"""The tracking server: connected to, asked for a run, and what it refuses in a line."""

from __future__ import annotations

import errno
import logging
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING
from urllib.parse import quote

from gptpipe import storage
from gptpipe.config.settings import Settings, make_home
from gptpipe.errors import UserError, damaged_database, no_space
from gptpipe.storage.lease import Held, Lease
from gptpipe.tracking.database import make_database
from gptpipe.wording import first_line, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)


TRAINING_TAG = "gptpipe.training"
DATASET_TAG = "gptpipe.dataset_url"
# MLflow 3 opens an experiment without this in its view for agents, where no curve is drawn
_VIEW = "workflowType=machine_learning"
_DOCTOR = "`gptpipe doctor` tries the server; what is trained is found again"
_MLFLOW_UI = "http://127.0.0.1:5000"  # where `mlflow ui` shows its pages
_LONGEST = 300  # characters of a reason
_MOVING_SECONDS, _ASK_SECONDS = 120.0, 0.2
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


@dataclass(frozen=True)
class Tracking:
    """Where runs and models are tracked.

    Attributes:
        uri: the tracking server, or a database.
        experiment: the MLflow experiment that runs go to.
        artifact_root: where a new experiment keeps its artifacts; None leaves it to the server.
        pages: where a browser finds MLflow; those of `mlflow ui` where there is no server.
        home: the local folder, where the database lies in it; it is made when the database is first needed.
        leases: folder or URL of the leases by which one process at a time moves the aliases of a model.
    """

    uri: str
    experiment: str
    artifact_root: str | None
    pages: str
    home: Path | None
    leases: str

    @classmethod
    def of(cls, settings: Settings) -> Tracking:
        """As the settings name it."""
        uri = settings.tracking_uri
        pages = (settings.mlflow_ui or uri).rstrip("/")
        return cls(
            uri,
            settings.experiment,
            settings.artifact_root,
            pages if pages.startswith("http") else _MLFLOW_UI,
            None if settings.mlflow_uri else settings.home_path,
            storage.join(settings.storage_url, "leases"),
        )

    @property
    def place(self) -> str:
        """The server or database as it may be shown: a database's address holds a password."""
        return without_password(self.uri)

    def version_page(self, name: str, version: object) -> str:
        """Where a browser finds a version of a registered model."""
        return f"{self.pages}/#/models/{quote(name, safe='')}/versions/{version}"

    @property
    def is_server(self) -> bool:
        return self.uri.startswith("http")

    def connect(self) -> MlflowClient:
        """A client of the tracking server or database; `import mlflow` happens here, at first use."""
        from mlflow import MlflowClient

        if self.uri.startswith("sqlite:"):
            if self.home is not None:
                make_home(self.home)
            logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of its database's migrations
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the trace of what it raises as well
            with storage.explained(self.uri, writing=True):
                make_database(Path(self.uri.removeprefix("sqlite:///")))
        # a line for each version that it waits for
        logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def experiment_id(self, client: MlflowClient) -> str:
        """The experiment that runs go to, made when it is not there.

        Raises:
            UserError: a person has deleted it.
        """
        from mlflow.exceptions import MlflowException

        known = client.get_experiment_by_name(self.experiment)
        if known is not None and known.lifecycle_stage == "deleted":
            address = f"MLFLOW_TRACKING_URI={shlex.quote(self.place)} "
            restore = f"{address}mlflow experiments restore --experiment-id {known.experiment_id}"
            raise UserError(
                "this MLflow experiment was deleted",
                where=f"GPTPIPE_EXPERIMENT={self.experiment}",
                hint=f"bring it back with `{restore}`, or name another one",
            )
        if known is not None:
            return str(known.experiment_id)
        try:
            place = storage.as_uri(self.artifact_root) if self.artifact_root else None
            return str(client.create_experiment(self.experiment, artifact_location=place, tags=_MODEL_TRAINING))
        except MlflowException:  # another run made it at the same moment
            known = client.get_experiment_by_name(self.experiment)
            if known is None:
                raise
            return str(known.experiment_id)

    def find_run(self, client: MlflowClient, training: str) -> Run | None:
        """The run of the training in this folder, or None."""
        # a filter knows no quotation mark within quotation marks: `_` stands for any character, and the rest is seen
        # here
        pattern = training.replace("'", "_").replace("\\", "_")
        same = f"tags.`{TRAINING_TAG}` {'=' if pattern == training else 'LIKE'} '{pattern}'"
        token: str | None = None
        while True:
            page = client.search_runs([self.experiment_id(client)], same, max_results=100, page_token=token)
            for run in page:
                if run.data.tags[TRAINING_TAG] == training:
                    return run
            if not (token := page.token):
                return None

    def refusal(self, error: Exception) -> Exception:
        """What MLflow refused, in one line for the user; any other error is a fault of ours and stays as it is."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if isinstance(error, ImportError):  # by SQLAlchemy, of a database's driver
            hint = "install it, or name the one that `gptpipe[stack]` has: postgresql+psycopg://…"
            return UserError(f"the database's driver is absent: {error}", where=self.place, hint=hint)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # what is logged is written to a file first
            return no_space(str(error.filename or tempfile.gettempdir()))
        if _is_of_a_store(error):
            hint = "run the same again: what is done is not done again"
            return UserError(f"MLflow's artifacts cannot be stored: {reason(error)}", where=self.place, hint=hint)
        if not isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
            return error
        said = reason(error)
        if "disk is full" in said:
            return no_space(self.place)
        if damaged := damaged_database(said, self.place, "its runs and models are gone; trainings are found again"):
            return damaged
        return UserError(f"MLflow refused: {said}", where=self.place, hint=_DOCTOR)

    @contextmanager
    def reached(self) -> Iterator[MlflowClient]:
        """A client. A server that does not answer, or refuses, is told in one line instead of a client's traceback.

        Raises:
            UserError: the server cannot be reached, or refuses something.
        """
        try:
            yield self.connect()
        except UserError:
            raise
        except Exception as error:
            if not is_away(error):
                raise self.refusal(error) from error
            raise UserError(f"MLflow cannot be reached: {reason(error)}", where=self.place, hint=_DOCTOR) from error

    @contextmanager
    def moving(self, model: str) -> Iterator[MlflowClient]:
        """A client, while nobody else with the same store moves the aliases of a model.

        A gate, an approval and a rollback read them, and then write in several steps; MLflow compares nothing.

        Raises:
            UserError: somebody else has been at it for two minutes; or as `reached` raises it.
        """
        folder, until = storage.join(self.leases, quote(model, safe="")), time.monotonic() + _MOVING_SECONDS
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(Lease(folder))
                    break
                except Held:  # for a few requests, or until the lease of a machine that is gone is over
                    if time.monotonic() > until:
                        raise
                    time.sleep(_ASK_SECONDS)
                except (UserError, OSError) as problem:  # a bad champion must go, whatever the store does
                    log.warning("nobody is kept from moving the aliases of %s meanwhile: %s", model, problem)
                    break
            yield stack.enter_context(self.reached())


def _is_of_a_store(error: BaseException) -> bool:
    """Whether the object store of the artifacts refuses, to which MLflow's client talks itself."""
    return any(kind.__module__.startswith(("botocore.exceptions", "boto3.exceptions")) for kind in type(error).__mro__)


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


def reason(error: BaseException) -> str:
    """What is wrong, in a line: in the words of the database, or of the network, that is behind it."""
    for each in (error, error.__cause__):
        error = getattr(each, "orig", None) or error
    if (broken := _broken_connection(error)) is not None:
        text = getattr(broken, "strerror", None) or first_line(broken)
        return f"{text[:1].lower()}{text[1:]}"
    return shorten(first_line(error), _LONGEST, placeholder=" …")


def _broken_connection(error: BaseException) -> BaseException | None:
    """The innermost cause of a request that came to no answer; the outer ones repeat it with their classes' names."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    inner = error.__cause__ or error.__context__ if isinstance(error, MlflowException) else error
    if not isinstance(inner, RequestException):
        return None
    while isinstance(cause := inner.__cause__ or inner.__context__, (HTTPError, OSError)):
        inner = cause
    return inner


@dataclass(frozen=True)
class RunLink:
    """A run, and where it is looked at."""

    tracking: Tracking
    run_id: str
    experiment_id: str

    @property
    def url(self) -> str:
        """Its page, where a server shows it; the path of the page below `mlflow ui` otherwise."""
        return f"{self.tracking.pages}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{_VIEW}"

    @property
    def how_to_open(self) -> str:
        if self.tracking.is_server:
            return self.url
        return f"mlflow ui --backend-store-uri {shlex.quote(self.tracking.place)}   then open {self.url}"

    def artifact_url(self, name: str) -> str:
        """The page that shows one of its artifacts."""
        return f"{self.url.split('?')[0]}/artifacts/{name}?{_VIEW}"

    @property
    def compare_url(self) -> str:
        """The page that shows the experiment's runs side by side."""
        return self.url.split("/runs/")[0] + f"/runs?compareRunsMode=CHART&{_VIEW}"
