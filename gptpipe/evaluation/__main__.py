"""A rank of an evaluation: `python -m gptpipe.evaluation JOB` under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gptpipe.evaluation.job import ScoringJob
from gptpipe.launch.job import Outcome
from gptpipe.launch.rank import run_rank


def prepared(job: ScoringJob) -> Callable[[], Outcome]:
    from gptpipe.evaluation.parallel import score_share

    return partial(score_share, job)


if __name__ == "__main__":
    job = ScoringJob.read(Path(sys.argv[1]))
    run_rank(job.folder, job.launcher, partial(prepared, job))
