"""MLflow's SQLite database, made all or nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from gptpipe.launch.job import OUTCOME
from gptpipe.storage.temporary import made_once

log = logging.getLogger(__name__)


def make_database(file: Path) -> None:
    """Make MLflow's tables in a file, unless they are there.

    MLflow makes them in many steps, and takes seconds: where it is killed between them, it refuses the file for ever.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with made_once(file) as partial:
        if partial is None:
            return
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
    trainings = file.parent / "storage" / "trainings"
    if next(trainings.glob(f"*/{OUTCOME}"), None) is not None:
        said = "%s is new, though %s holds trainings: runs and models of before are not in it"
        log.warning(said, file, trainings)
