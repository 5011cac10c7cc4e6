"""The local folder of this process and of those that it starts: caches, running jobs, what is on its way elsewhere."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`GPTPIPE_HOME`, or `.gptpipe` in the current folder.

    An entry point puts the folder that the settings name into the environment, whole, so that the processes it starts
    have the same one whatever folder they work in.
    """
    return Path(os.environ.get("GPTPIPE_HOME") or ".gptpipe").expanduser().absolute()


def scratch_home() -> Path:
    """Where files wait that are on their way to an object store."""
    return home() / "scratch"


def cache_home() -> Path:
    """Where files are kept for the next time; what is in it can be made again."""
    return home() / "cache"


def reproductions_home() -> Path:
    """Where trainings are done once more, to see whether they come out the same."""
    return home() / "reproductions"


def jobs_home() -> Path:
    """Where ranks that run have their folders."""
    return home() / "jobs"
