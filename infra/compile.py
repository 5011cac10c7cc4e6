"""Imports what our processes import, so that Python keeps it compiled: run once after the install.

Compiling all that is installed takes four times as long: most of it nobody here imports.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import suppress

# one process for each list, with about half of the work; what an extra has not installed is left out
MODULES = (
    [
        "flows.retrain",
        "flows.sweep",
        "gptpipe.train.loop",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "scipy.stats",
        "torch._dynamo",
        "torch.distributed.run",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.gpt2.tokenization_gpt2",
    ],
    [
        "hypothesis",
        "mlflow.server.fastapi_app",
        "mlflow.store.tracking.sqlalchemy_store",
        "prefect.server.api.server",
        "prefect.cli",
        "pytest",
        "supervisor.supervisord",
        "xdist",
    ],
)
QUIET = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def main() -> None:
    if names := sys.argv[1:]:
        for name in names:
            with suppress(Exception):  # whatever it is, it shows where the module is needed
                importlib.import_module(name)
        return
    environment = {**os.environ, **QUIET, "PYTHONDONTWRITEBYTECODE": ""}
    processes = [subprocess.Popen([sys.executable, __file__, *names], env=environment) for names in MODULES]
    for process in processes:
        process.wait()


if __name__ == "__main__":
    main()
