"""A rank of a training: `python -m gptpipe.train JOB` under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.rank import run_rank
from gptpipe.launch.signals import StopRequest


def prepared(job: Job) -> Callable[[], Outcome]:
    stop = StopRequest(job.train.max_hours)  # a signal while all is imported counts
    from gptpipe.train.loop import train

    return partial(train, job, stop)


if __name__ == "__main__":
    job = Job.read(Path(sys.argv[1]))
    run_rank(job.folder, job.launcher, partial(prepared, job))
