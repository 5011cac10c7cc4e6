"""MLflow's SQLite database, made all or nothing."""

from __future__ import annotations

from pathlib import Path

from gptpipe.storage.temporary import made_once


def make_database(file: Path) -> None:
    """Make MLflow's tables in a file, unless they are there.

    MLflow makes them in many steps, and takes seconds: where it is killed between them, it refuses the file for ever.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with made_once(file) as partial:
        if partial is not None:
            from mlflow import MlflowClient

            MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
