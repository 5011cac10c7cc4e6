"""MLflow's server behind its guard: `mlflow server --app-name gptpipe` finds it by an entry point."""

from __future__ import annotations

import os

from gptpipe.config.settings import settings
from gptpipe.guard import Guard, server_names


def create_app() -> Guard:
    """The application that MLflow serves."""
    # the guard looks at Host and Origin; MLflow would refuse pages of its own at an address that is not private
    os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
    os.environ.setdefault("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
    from mlflow.server.fastapi_app import app

    asked = settings().mlflow_auth
    return Guard(app, server_names(settings()), asked.get_secret_value() if asked else "")
