"""A rank of an evaluation: `python -m gptpipe.scoring JOB` under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gptpipe.rank import run_rank
from gptpipe.scoring.job import ScoringJob
from gptpipe.train.job import Outcome


def prepared(job: ScoringJob) -> Callable[[], Outcome]:
    from gptpipe.scoring.ranks import score_share

    return partial(score_share, job)


if __name__ == "__main__":
    job = ScoringJob.read(Path(sys.argv[1]))
    run_rank(job.folder, job.launcher, partial(prepared, job))
