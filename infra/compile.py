"""Imports what our processes import, so that Python keeps it compiled: run once after the install.

Compiling all that is installed takes four times as long: most of it nobody here imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from contextlib import suppress

# two processes, each with about half of the work; what an extra has not installed is left out
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


def load(names: list[str]) -> None:
    for name in names:
        with suppress(Exception):  # whatever it is, it shows where the module is needed
            importlib.import_module(name)


if __name__ == "__main__":
    sys.dont_write_bytecode = False  # whatever PYTHONDONTWRITEBYTECODE says of other programs
    with multiprocessing.get_context("fork").Pool(len(MODULES)) as pool:
        pool.map(load, MODULES)
