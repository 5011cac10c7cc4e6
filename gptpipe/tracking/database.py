"""MLflow's SQLite database, made all or nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gptpipe import storage
from gptpipe.storage.temporary import atomic_link


def make_database(file: Path) -> None:
    """Make MLflow's tables in a file, unless it is there.

    MLflow makes them in many steps, and takes seconds: where it is killed between them, it refuses the file for ever.
    """
    if file.exists() and file.stat().st_size:
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    storage.sweep_temporaries(str(file.parent), below=False)
    with atomic_link(file) as partial:
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
        file.unlink(missing_ok=True)  # an empty one
        with suppress(FileExistsError):  # another process was first
            os.link(partial, file)
