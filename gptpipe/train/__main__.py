"""A rank of a training: `python -m gptpipe.train JOB` under torchrun."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptpipe.launch.job import Job, Outcome


def prepared(job: Job) -> Callable[[], Outcome]:
    from gptpipe.launch.signals import StopRequest

    stop = StopRequest(job.train.max_hours)  # a signal while all is imported counts
    from gptpipe.train.compiler import keep_compiled

    keep_compiled()
    from gptpipe.train.loop import train

    return partial(train, job, stop)


def main() -> None:
    gc.disable()  # nothing that is imported is garbage; `run_rank` enables it
    from gptpipe.launch.job import Job
    from gptpipe.launch.rank import run_rank

    job = Job.read(Path(sys.argv[1]))
    run_rank(job.folder, job.launcher, partial(prepared, job))


if __name__ == "__main__":
    main()
