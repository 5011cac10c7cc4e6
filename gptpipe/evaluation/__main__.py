"""A rank of an evaluation: `python -m gptpipe.evaluation JOB` under torchrun."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptpipe.evaluation.job import ScoringJob
    from gptpipe.launch.job import Outcome


def prepared(job: ScoringJob) -> Callable[[], Outcome]:
    from gptpipe.evaluation.parallel import score_share

    return partial(score_share, job)


def main() -> None:
    gc.disable()  # nothing that is imported is garbage; `run_rank` enables it
    from gptpipe.evaluation.job import ScoringJob
    from gptpipe.launch.rank import run_rank

    job = ScoringJob.read(Path(sys.argv[1]))
    run_rank(job.folder, job.launcher, partial(prepared, job))


if __name__ == "__main__":
    main()
