"""A rank's way in and out: `python -m gptpipe.train JOB` under torchrun."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from pathlib import Path

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.memory import keep_freed_memory
from gptpipe.train.job import OUTCOME, RANK_LINE, Job, Outcome
from gptpipe.train.stop import StopRequest, end_with


def main(path: str) -> int:
    """Run one rank; the outcome goes into the job's folder, since torchrun turns every exit code into 1."""
    keep_freed_memory()
    job = Job.read(Path(path))
    rank = int(os.environ.get("RANK", 0))
    prefix = f"[rank {rank}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    logging.basicConfig(level=logging.INFO, format=f"{RANK_LINE}{prefix}%(message)s", stream=sys.stdout)
    (job.folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    end_with(job.launcher)
    stop = StopRequest(job.train.max_hours)
    outcome_file = job.folder / (OUTCOME if rank == 0 else f"outcome-{rank}.json")
    try:
        from gptpipe.train.loop import train

        gc.collect()
        gc.freeze()  # what was imported lives to the end: later collections need not look at it
        outcome = train(job, stop)
    except UserError as error:
        outcome = Outcome(status="user_error", reason=str(error), error=error.as_dict())
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        outcome = Outcome(status="failed", reason=f"rank {rank}: {reason}", traceback=traceback.format_exc())
    if rank == 0 or outcome.status in ("failed", "user_error"):
        outcome.write(str(outcome_file))
        storage.sweep_temporaries(str(job.folder))
    return 0 if outcome.status in ("finished", "preempted") else 1


if __name__ == "__main__":
    # Threads of gloo and of the S3 client may outlive the work; nothing is left to do for them.
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
