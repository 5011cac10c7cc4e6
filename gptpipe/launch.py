"""torchrun as a child process: prepares a job, starts the ranks, relays what they say, and sees them end.

torchrun turns every exit code into 1 and kills ranks 30 s after a SIGTERM. So it is started deaf to signals:
the launcher signals the ranks itself, and reads how they ended from `outcome.json`.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from gptpipe import storage
from gptpipe.checkpoint import CONFIG, newest_checkpoint, open_checkpoint
from gptpipe.config import ModelConfig, TrainConfig, digest
from gptpipe.data.cache import TokenCache
from gptpipe.data.dataset import Dataset, open_dataset
from gptpipe.data.loader import SampleOrder, check_ranks
from gptpipe.data.rows import ROW_GROUP_TOKENS
from gptpipe.data.tokens import TokenStream
from gptpipe.errors import Preempted, UserError
from gptpipe.lease import Lease
from gptpipe.pretrained import check_same_shape, model_config_from_hf
from gptpipe.settings import settings
from gptpipe.train.job import METRICS, OUTCOME, RANK_LINE, Job, Outcome
from gptpipe.train.metrics import MetricsFollower, keep_until
from gptpipe.wording import counted

log = logging.getLogger(__name__)

STAGE_VERSION = 2  # changes when the same configuration would come to another result
_POLL = 0.1  # seconds
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Cancelled(BaseException):
    """The training was cancelled: nothing was saved, the last committed checkpoint stands."""


class TrainingFailed(Exception):
    """A rank failed; the message is its reason, `details` its traceback or the ranks' last lines."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. Losses in nats a token. `already_done`: it was finished before."""

    id: str
    training: str
    checkpoint: str
    best_checkpoint: str
    dataset: str
    steps: int
    tokens: int
    train_loss: float | None
    validation_loss: float | None
    tokens_per_second: float | None
    already_done: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Watchers:
    """What the caller is told while ranks run. All are called from the launcher's own thread.

    Attributes:
        on_start: the job, before any rank is started.
        on_line: a line that a rank printed.
        on_metrics: the lines of metrics.jsonl, each once, beginning with those from before a resume.
        is_cancelled: whether a SIGTERM means cancel (do not save) rather than preemption (save).
    """

    on_start: Callable[[Job], None] = lambda job: None
    on_line: Callable[[str], None] = log.info
    on_metrics: Callable[[list[dict[str, Any]]], None] = lambda lines: None
    is_cancelled: Callable[[], bool] = lambda: False


def train(
    model: ModelConfig,
    config: TrainConfig,
    *,
    data: str,
    out: str,
    init: str = "",
    resume: bool = True,
    force: bool = False,
    watchers: Watchers | None = None,
) -> TrainResult:
    """Train in `<out>/<id>/`, going on from its newest checkpoint, unless it is finished.

    Args:
        data: URL of a dataset.
        init: checkpoint whose weights to start from; empty is random weights.
        resume: False starts from the beginning if there is an unfinished training.
        force: make a new attempt, `<out>/<id>-2/` and so on, even if this one is finished.

    Raises:
        UserError: something given cannot be trained; found before a rank is started where that can be.
        Preempted: stopped early with everything saved.
        Cancelled: stopped without saving.
        TrainingFailed: a rank failed.
    """
    watchers = watchers or Watchers()
    dataset = open_dataset(data)
    check_fits(model, config, dataset)
    identity = training_id(model, config, dataset.id, init)
    training = attempt_folder(storage.join(storage.normalize(out), identity), force)
    ended = Outcome.read(storage.join(training, OUTCOME))
    if ended is not None and ended.status == "finished" and open_checkpoint(ended.checkpoint):
        return _result(identity, training, dataset, ended, already_done=True)
    cache = settings().home_path / "cache"
    prepare_tokens(model, config, dataset, cache)
    with Lease(training):
        start = newest_checkpoint(training) if resume else None
        if not resume:
            for name in storage.list_folders(training):
                storage.remove_tree(storage.join(training, name))
        job = Job(
            id=identity,
            model=model,
            train=config,
            training=training,
            dataset=dataset.url,
            cache=cache,
            init=init,
            folder=settings().home_path / "jobs" / f"{identity[:12]}-{digest(training)[:12]}",
            resume=start.url if start else "",
            launcher=os.getpid(),
        )
        _prepare_folder(job, start.step if start else -1)
        watchers.on_start(job)
        outcome = _Launch(job, watchers).run()
        outcome.write(storage.join(training, OUTCOME))
    if outcome.status == "user_error":
        error = outcome.error or {"message": outcome.reason}
        raise UserError(error["message"], where=error.get("where", ""), hint=error.get("hint", ""))
    if outcome.status == "failed":
        raise TrainingFailed(outcome.reason, outcome.traceback)
    if outcome.status == "preempted":
        raise Preempted(f"{outcome.reason}; saved at step {outcome.step} of {config.steps}, run again to go on")
    return _result(identity, training, dataset, outcome, already_done=False)


def training_id(model: ModelConfig, config: TrainConfig, dataset_id: str, init: str) -> str:
    """A hash of everything that decides the result, default values left out.

    Raises:
        UserError: `init` is no checkpoint, or one of another shape.
    """
    start = ""
    if init:
        found = open_checkpoint(init)
        if found is None:
            raise UserError("not a checkpoint", where=init, hint="make one with `gptpipe import`")
        check_same_shape(model, model_config_from_hf(found.json(CONFIG), init), init)
        start = found.model_sha256
    return digest(
        {
            "stage": STAGE_VERSION,
            "dataset": dataset_id,
            "model": model.result_fields(),
            "train": config.result_fields(),
            "init": start,
        }
    )


def attempt_folder(base: str, force: bool) -> str:
    """The newest attempt's folder, or with `force` the next one after a finished attempt."""
    number, folder = 1, base
    while storage.exists(storage.join(f"{base}-{number + 1}", OUTCOME)) or _has_checkpoint(f"{base}-{number + 1}"):
        number += 1
        folder = f"{base}-{number}"
    ended = Outcome.read(storage.join(folder, OUTCOME))
    return f"{base}-{number + 1}" if force and ended is not None and ended.status == "finished" else folder


def _has_checkpoint(folder: str) -> bool:
    return newest_checkpoint(folder) is not None


def check_fits(model: ModelConfig, config: TrainConfig, dataset: Dataset) -> None:
    """A UserError when model, ranks, device and dataset do not fit together."""
    check_ranks(config.batch_size, config.nproc)
    if config.device == "cuda":
        import torch

        have = torch.cuda.device_count()
        if have < config.nproc:
            raise UserError(
                f"{counted(config.nproc, 'rank')} on CUDA, a GPU each; torch sees {have}",
                where="train.nproc" if have else "train.device",
                hint="use fewer ranks" if have else "set train.device=cpu or auto, or install torch's CUDA build",
            )
    have = dataset.tokenizer["vocab_size"]
    if model.vocab_size != have:
        raise UserError(
            f"the model has {model.vocab_size} tokens, the dataset's tokenizer "
            f"{dataset.tokenizer['name']!r} has {have}",
            where="model.vocab_size",
            hint=f"set model.vocab_size={have}",
        )


def prepare_tokens(model: ModelConfig, config: TrainConfig, dataset: Dataset, cache: Path) -> None:
    """Decode the dataset into the local cache, unless it is shuffled in two levels and decoded on the way.

    Raises:
        UserError: a split is shorter than one window, does not fit into the cache, or has no such corpus.
    """
    limit = settings().cache_bytes
    tokens = TokenCache(cache, limit)
    if dataset.total("shards", "validation"):
        TokenStream(dataset, "validation", tokens).prepare()
    stream = TokenStream(dataset, "train", tokens)
    if config.shuffle == "global":
        stream.prepare()
    # a pool is read while the next is fetched, and a block lies in up to two row groups
    elif (wanted := 4 * config.shuffle_blocks * ROW_GROUP_TOKENS * stream.dtype.itemsize) > limit:
        raise UserError(
            f"two pools of {config.shuffle_blocks} blocks want {wanted / 1e9:.1f} GB of cache, "
            f"there are {limit / 1e9:.1f}",
            where="train.shuffle_blocks",
            hint="lower it, or raise GPTPIPE_CACHE_GIGABYTES",
        )
    SampleOrder(stream, model.context_length, config)


def _prepare_folder(job: Job, step: int) -> None:
    """A fresh job folder that holds the metrics up to the step training goes on from."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    before = b""
    if job.resume:
        try:
            before = keep_until(storage.read_bytes(storage.join(job.training, METRICS)), step)
        except FileNotFoundError:
            log.warning("no metrics.jsonl in %s: the curve begins at step %d", job.training, step)
    (job.folder / METRICS).write_bytes(before)
    job.write()


def _result(identity: str, training: str, dataset: Dataset, outcome: Outcome, *, already_done: bool) -> TrainResult:
    best = storage.join(training, f"step-{outcome.best_step:08d}") if outcome.best_step else outcome.checkpoint
    return TrainResult(
        id=identity,
        training=training,
        checkpoint=outcome.checkpoint,
        best_checkpoint=best,
        dataset=dataset.url,
        steps=outcome.step,
        tokens=outcome.tokens,
        train_loss=outcome.train_loss,
        validation_loss=outcome.validation_loss,
        tokens_per_second=outcome.tokens_per_second,
        already_done=already_done,
    )


def torchrun_command(job: Job) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={job.train.nproc}",
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--local-addr=127.0.0.1",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        "--signals-to-handle=SIGQUIT",
        "-m",
        "gptpipe.train",
        str(job.folder / "job.json"),
    ]


def _ignore_signals() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Launch:
    """One start of torchrun, from the first rank to the last."""

    def __init__(self, job: Job, watchers: Watchers) -> None:
        self.job, self.watchers = job, watchers
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_lines: list[str] = []
        self._signals = 0
        self._first_signal = ""
        self._preempt_until: float | None = None

    def run(self) -> Outcome:
        follower = MetricsFollower(self.job.folder / METRICS)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.job.train.threads or 1),
            "PYTHONUNBUFFERED": "1",
            "TORCHELASTIC_ERROR_FILE": str(self.job.folder / "torchelastic.json"),
        }
        with self._catching_signals():
            self.process = subprocess.Popen(
                torchrun_command(self.job),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=_ignore_signals,
            )
            reader = threading.Thread(target=self._read_lines, name="rank-lines", daemon=True)
            reader.start()
            try:
                while self.process.poll() is None:
                    self._relay(follower)
                    self._heed_signals()
                    time.sleep(_POLL)
                reader.join(2)
                self._relay(follower)
            finally:
                self.kill()
        return self._outcome()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def _relay(self, follower: MetricsFollower) -> None:
        while not self._lines.empty():
            line = self._lines.get()
            self._last_lines = [*self._last_lines[-200:], line]
            if line.startswith(RANK_LINE):
                self.watchers.on_line(line.removeprefix(RANK_LINE))
            else:  # torchrun's own reports and libraries' chatter: the outcome says better what happened
                log.debug("%s", line)
        if records := follower.poll():
            self.watchers.on_metrics(records)

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        """Take SIGTERM, SIGINT and SIGHUP while ranks run (in the main thread: elsewhere Python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _: Any) -> None:
            self._signals += 1
            self._first_signal = self._first_signal or signal.Signals(number).name

        before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed_signals(self) -> None:
        """The first signal preempts, the second cancels; so does the first when the run was cancelled."""
        if not self._signals:
            return
        if self._signals > 1 or (self._preempt_until is None and self.watchers.is_cancelled()):
            raise Cancelled(f"cancelled; the last committed checkpoint in {self.job.training} stands")
        if self._preempt_until is None:
            log.warning("%s: finishing the step and saving; once more to stop without saving", self._first_signal)
            self._preempt_until = time.monotonic() + self.job.train.save_timeout
            for process in self._ranks():
                _signal(process, signal.SIGTERM)
        elif time.monotonic() > self._preempt_until:
            log.warning("not saved within train.save_timeout=%g s: killed", self.job.train.save_timeout)
            self.kill()

    def _ranks(self) -> list[psutil.Process]:
        """The ranks' processes: torchrun's descendants (each in a session of its own)."""
        try:
            return [
                p for p in psutil.Process(self.process.pid).children(recursive=True) if "gptpipe.train" in p.cmdline()
            ]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return []

    def kill(self) -> None:
        """End everything now. Nothing is left behind, whatever state it is in."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for path in self.job.folder.glob("rank-*.pid"):  # ranks whose torchrun is gone
            try:
                orphan = psutil.Process(int(path.read_text()))
                if "gptpipe.train" in orphan.cmdline():
                    family.append(orphan)
            except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
                continue
        if self.process.poll() is None:
            self.process.kill()
        for process in family:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(family, timeout=5)
        self.process.wait()

    def _outcome(self) -> Outcome:
        """How it ended: a rank that was killed explains why the others failed, and says nothing itself."""
        written = [self.job.folder / OUTCOME, *sorted(self.job.folder.glob("outcome-*.json"))]
        outcomes = [found for path in written if (found := Outcome.read(str(path))) is not None]
        # the first to fail is the cause; the other ranks only lost their connection to it
        outcomes.sort(key=lambda found: ("finished", "preempted", "user_error", "failed").index(found.status))
        if outcomes and outcomes[0].status != "failed":
            return outcomes[0]
        if killed := _killed_by_signal(self._last_lines):
            return Outcome(status="failed", reason=killed, traceback=outcomes[0].traceback if outcomes else "")
        if outcomes:
            return outcomes[0]
        if self._preempt_until is not None:
            newest = newest_checkpoint(self.job.training)
            reason = f"{self._first_signal}, and not saved within train.save_timeout"
            return Outcome(status="preempted", reason=reason, step=newest.step if newest else 0)
        return Outcome(status="failed", reason="the ranks ended without a word", traceback="\n".join(self._last_lines))


def _killed_by_signal(lines: list[str]) -> str:
    """What torchrun's report says of a rank that a signal ended, in a person's words; empty if there is none."""
    report = "\n".join(lines)
    for rank, code in re.findall(r"rank\s*: (\d+) \(local_rank: \d+\)\n\s*exitcode\s*: -(\d+)", report):
        if int(code) != signal.SIGTERM:  # which torchrun sends to the ranks that are left
            cause = ": probably out of memory" if int(code) == signal.SIGKILL else ""
            return f"rank {rank} was killed by signal {code}{cause}"
    return ""


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
