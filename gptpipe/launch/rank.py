"""A rank's way in and out, whatever it computes: it ends with its launcher, and writes down how it ended."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gptpipe import storage
from gptpipe.errors import Damaged, UserError
from gptpipe.launch.job import OUTCOME, RANK_LINE, Outcome
from gptpipe.launch.signals import end_with
from gptpipe.model.memory import keep_freed_memory


def run_rank(folder: Path, launcher: int, work: Callable[[], Callable[[], Outcome]]) -> NoReturn:
    """Run one rank to its end and the process's.

    The outcome goes into the job's folder, since torchrun turns every exit code into 1.

    Args:
        launcher: process id of the launcher; the rank ends when it is gone.
        work: imports what is needed, with garbage collection off, and returns what is to be done.
    """
    keep_freed_memory()
    rank = int(os.environ.get("RANK", 0))
    prefix = f"[rank {rank}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    logging.basicConfig(level=logging.INFO, format=f"{RANK_LINE}{prefix}%(message)s", stream=sys.stdout)
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    end_with(launcher)
    try:
        do = work()
        gc.freeze()  # what was imported lives to the end: no search for garbage need look at it, nor one now
        gc.enable()
        outcome = do()
    except UserError as error:
        damaged = isinstance(error, Damaged)
        outcome = Outcome(status="user_error", reason=str(error), error=error.as_dict(), damaged=damaged)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        outcome = Outcome(status="failed", reason=f"rank {rank}: {reason}", traceback=traceback.format_exc())
    if rank == 0 or outcome.status in ("failed", "user_error"):
        outcome.write(str(folder / (OUTCOME if rank == 0 else f"outcome-{rank}.json")))
        storage.sweep_temporaries(str(folder))
    # Threads of gloo and of the S3 client may outlive the work; nothing is left to do for them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if outcome.status in ("finished", "preempted") else 1)
