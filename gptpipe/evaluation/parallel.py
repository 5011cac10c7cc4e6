"""An evaluation on several ranks: each scores its share of the windows, and their sums are added up.

Nothing is sent between ranks: each writes its sums into the job's folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from gptpipe import storage
from gptpipe.config import EvaluateConfig
from gptpipe.cores import usable_cores
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import Preempted, UserError
from gptpipe.evaluation.documents import Documents, TextTokens, Tokens
from gptpipe.evaluation.job import ScoringJob
from gptpipe.evaluation.score import score
from gptpipe.evaluation.tally import Tally
from gptpipe.launch.job import Outcome
from gptpipe.launch.torchrun import Torchrun, Watchers
from gptpipe.model.precision import pick_device, to_precision
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.find import read_weights

_ARRAYS, _TOKENS = "documents.npz", "tokens.npy"


def score_on_ranks(
    weights: str, documents: Documents, windows: np.ndarray, config: EvaluateConfig, batch_tokens: int
) -> Tally:
    """The sums of all windows.

    Raises:
        UserError: a rank cannot use what was given. Preempted: asked to stop. Cancelled: stopped twice.
        RuntimeError: a rank failed.
    """
    storage.jobs_home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage.jobs_home(), prefix="scoring-") as name:
        folder = Path(name)
        stream = documents.tokens if isinstance(documents.tokens, TokenStream) else None
        cache = stream.cache if stream else TokenCache()
        if stream is None:
            np.save(folder / _TOKENS, documents.tokens.read(0, documents.tokens.length))
        np.savez(folder / _ARRAYS, starts=documents.starts, ends=documents.ends, windows=windows)
        job = ScoringJob(
            weights=weights,
            dataset=stream.dataset.url if stream else "",
            split=config.split,
            tokenizer=documents.tokenizer.reference,
            precision=config.precision,
            device=config.device,
            batch_tokens=batch_tokens,
            nproc=config.nproc,
            cache=cache.home,
            cache_bytes=cache.limit,
            threads=max(1, usable_cores() // config.nproc),
            folder=folder,
            launcher=os.getpid(),
        )
        job.write()
        outcome = Torchrun(job, Watchers()).run()
        if outcome.status == "user_error" and outcome.error:
            raise UserError(outcome.error["message"], where=outcome.error["where"], hint=outcome.error["hint"])
        if outcome.status == "preempted":
            raise Preempted(outcome.reason)
        if outcome.status != "finished":
            raise RuntimeError(f"{outcome.reason}\n{outcome.traceback}")
        tallies = [Tally.read(folder / f"tally-{rank}.npz") for rank in range(config.nproc)]
    for other in tallies[1:]:
        tallies[0].merge(other)
    return tallies[0]


def score_share(job: ScoringJob) -> Outcome:
    """What one rank does."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(pick_device(job.device))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.set_num_threads(job.threads)
    tokenizer = get_tokenizer(job.tokenizer)
    tokens: Tokens
    if job.dataset:
        cache = TokenCache(job.cache, job.cache_bytes)
        tokens = TokenStream(open_dataset(job.dataset), job.split, cache)
    else:
        tokens = TextTokens(np.load(job.folder / _TOKENS))
    with np.load(job.folder / _ARRAYS) as arrays:
        documents = Documents.bare(tokens, tokenizer, arrays["starts"], arrays["ends"])
        windows = arrays["windows"]
    model = to_precision(read_weights(job.weights).build(), job.precision).to(device)
    tally = score(
        model,
        documents,
        windows,
        batch_tokens=job.batch_tokens,
        precision=job.precision,
        rank=rank,
        world_size=world_size,
    )
    tally.write(job.folder / f"tally-{rank}.npz")
    return Outcome(status="finished")
