"""What Prefect's workers run: each deployed flow by its name, in a process that is made ready for it first.

A flow is imported when it is asked for, and no other.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flows import begin
from gptpipe.startup import import_quickly

import_quickly()
begin()


def __getattr__(name: str) -> Any:
    try:
        return getattr(import_module(f"flows.{name}"), name)
    except ModuleNotFoundError as error:
        if error.name != f"flows.{name}":
            raise
        raise AttributeError(f"no flow is called {name}") from None
