"""What flow runs are called: by what they do, in place of Prefect's adjective and animal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from prefect.runtime import flow_run

_DRAWN = re.compile(r"[A-Z]?[a-z]+\d*-[A-Z]?[a-z]+(-[a-z])?")  # what Prefect or its UI draws


def named(describe: Callable[[Any], str]) -> Callable[[], str]:
    """A flow's `flow_run_name`: what `describe` makes of its parameters, unless a person has given the run a name."""

    def name() -> str:
        given = str(flow_run.name or "")
        if given and not _DRAWN.fullmatch(given):
            return given
        try:
            return describe(flow_run.parameters["parameters"])[:200]
        except Exception:  # parameters that cannot be used are said by the flow itself
            return given

    return name


def last_part(url: str) -> str:
    """What a person knows a folder or file by."""
    return url.rstrip("/").rpartition("/")[2] or url
