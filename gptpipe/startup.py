"""How a process of ours begins: quickly."""

from __future__ import annotations

import gc

_OBJECTS = 100_000  # Python's own number, 700, has a start look through all that is imported hundreds of times


def import_quickly() -> None:
    """Look for garbage seldom: what is imported is none.

    Prefect, torch and our flows together make over a million objects that live to the end. Looking through them while
    they were imported took a tenth of the start (see tests/benchmarks/RESULTS.md).
    """
    gc.set_threshold(_OBJECTS, 50, 100)
