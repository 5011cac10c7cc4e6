"""One training, from its configuration to its outcome: what is checked, prepared and locked before ranks start."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from gptpipe import storage
from gptpipe.config import ModelConfig, TrainConfig, digest
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.loader import check_ranks
from gptpipe.dataset.news import news_since, write_stretches
from gptpipe.dataset.rows import ROW_GROUP_TOKENS
from gptpipe.dataset.sample_order import SampleOrder
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import Preempted, UserError
from gptpipe.launch.attempts import Tries, ended_training, metrics_before, place_of, step_of
from gptpipe.launch.gang import train_on_nodes
from gptpipe.launch.hosts import Hosts
from gptpipe.launch.job import METRICS, OUTCOME, Job, Outcome
from gptpipe.launch.signals import StopSignals
from gptpipe.launch.torchrun import Torchrun, Watchers
from gptpipe.storage.lease import Lease
from gptpipe.tokenizer import is_own
from gptpipe.weights.checkpoint import CONFIG, newest_checkpoint, open_checkpoint
from gptpipe.weights.commit import finish_removals, remove_checkpoint
from gptpipe.weights.huggingface import model_config_from_hf, ours_in
from gptpipe.weights.weights import check_same_shape
from gptpipe.wording import counted

log = logging.getLogger(__name__)

NEWS = "news.bin"  # in a training's folder
STAGE_VERSION = 2  # changes when the same configuration would come to another result


class TrainingFailed(Exception):
    """A rank failed; the message is its reason, `details` its traceback or the ranks' last lines."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details
        if details:
            self.add_note(details)  # so that a log of this error's traceback has the rank's too


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. Losses in nats per token. `already_done`: it was finished before."""

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


def train(
    model: ModelConfig,
    config: TrainConfig,
    *,
    data: str,
    out: str,
    init: str = "",
    since: str = "",
    resume: bool = True,
    force: bool = False,
    cache: TokenCache | None = None,
    watchers: Watchers | None = None,
    hosts: Hosts | None = None,
    variables: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train in `<out>/<id>/`, going on from its newest checkpoint, unless it is finished.

    Args:
        data: URL of a dataset.
        init: checkpoint whose weights to start from; empty is random weights.
        since: URL of the dataset that those weights have seen: samples with text that is new since then are drawn more
            often, by `config.replay`. Empty draws all alike.
        resume: False starts from the beginning if there is an unfinished training.
        force: make a new attempt, `<out>/<id>-2/` and so on, even if this one is finished.
        cache: where decoded tokens are; by default this machine's.
        hosts: who reserves this machine, and starts other ones where `config.nodes` asks for several.
        variables: of the environment of the ranks on this machine, which GPUs they see, say.

    Raises:
        UserError: something given cannot be trained; found before a rank is started where that can be.
        Preempted: stopped early with everything saved.
        Cancelled: stopped without saving.
        TrainingFailed: a rank failed.
    """
    called = time.time()
    watchers, cache = watchers or Watchers(), cache or TokenCache()
    dataset = open_dataset(data)
    check_fits(model, config, dataset)
    start = check_start(init, model, dataset) if init else ""
    earlier = open_dataset(since) if since else None
    identity = training_id(model, config, dataset.id, start, earlier.id if earlier else "")
    training = attempt_folder(storage.join(storage.normalize(out), identity), force)
    ended, passed_over = ended_training(training)
    if ended and not passed_over:
        return _result(identity, training, dataset, ended, already_done=True)
    news = None
    if earlier:
        news = news_since(earlier, dataset, "train").stretches
        if not len(news):
            raise UserError(f"nothing is new since dataset {earlier.id}", where=dataset.url, hint="give more text")
    if config.nodes > 1:
        _check_hosts(config, hosts)
    else:
        check_devices(config)
        prepare_tokens(model, config, dataset, cache, news)
    job = Job(
        id=identity,
        model=model,
        train=config,
        training=training,
        dataset=dataset.url,
        cache=cache.home,
        cache_bytes=cache.limit,
        init=init,
        folder=storage.jobs_home() / f"{identity[:12]}-{digest(training)[:12]}",
        launcher=os.getpid(),
        called=called,
    )
    with Lease(training):
        storage.sweep_temporaries(training)
        if news is not None:
            place = storage.join(training, NEWS)
            job = job.model_copy(update={"news": place, "news_sha256": write_stretches(place, news)})
        if not resume:
            for name in storage.list_folders(training):
                remove_checkpoint(storage.join(training, name))
        while True:
            outcome = _run(partial(_from_newest, job, passed_over), config, hosts, watchers, variables)
            if not _pass_over_damaged(job, outcome, passed_over):
                break
        outcome.write(storage.join(training, OUTCOME))
    _raise_unless_finished(outcome, config)
    return _result(identity, training, dataset, outcome, already_done=False)


def _check_hosts(config: TrainConfig, hosts: Hosts | None) -> None:
    if hosts is None:
        raise UserError(
            "several nodes need a Prefect server",
            where=f"train.nodes={config.nodes}",
            hint="set PREFECT_API_URL, or start a server with `gptpipe up`; `gptpipe run` then starts them",
        )


def _from_newest(job: Job, passed_over: Collection[str]) -> Job:
    """What to train from now on: the job, from the newest checkpoint there is."""
    newest = newest_checkpoint(job.training, passed_over)
    if newest is not None:
        finish_removals(newest)
    return job.model_copy(update={"resume": newest.url if newest else ""})


def _pass_over_damaged(job: Job, outcome: Outcome, passed_over: list[str]) -> bool:
    """Add the checkpoint that an attempt could not go on from, if it is damaged."""
    if not outcome.damaged:  # most: the store is not asked for nothing
        return False
    newest = newest_checkpoint(job.training, passed_over)
    where = (outcome.error or {}).get("where", "")
    if newest is None or not where.startswith(f"{newest.url}/"):
        return False
    passed_over.append(newest.url)
    earlier = newest_checkpoint(job.training, passed_over)
    said, place = (outcome.error or {}).get("message", ""), place_of(earlier.url if earlier else "")
    log.warning("%s: %s; the checkpoint is passed over, training goes on from %s", where, said, place)
    return True


def _run(
    next_job: Callable[[], Job],
    config: TrainConfig,
    hosts: Hosts | None,
    watchers: Watchers,
    variables: Mapping[str, str] | None,
) -> Outcome:
    """Train on several nodes, or on this machine, which `hosts` reserves where there are some."""
    if hosts is not None and config.nodes > 1:
        return train_on_nodes(next_job, hosts, watchers)
    with hosts.this_machine() if hosts else nullcontext():
        return train_here(next_job, watchers, variables)


def _raise_unless_finished(outcome: Outcome, config: TrainConfig) -> None:
    if outcome.status == "user_error":
        error = outcome.error or {"message": outcome.reason}
        raise UserError(error["message"], where=error.get("where", ""), hint=error.get("hint", ""))
    if outcome.status == "failed":
        raise TrainingFailed(outcome.reason, outcome.traceback)
    if outcome.status == "preempted":
        raise Preempted(f"{outcome.reason}; saved at step {outcome.step} of {config.steps}, run again to go on")


def train_here(next_job: Callable[[], Job], watchers: Watchers, variables: Mapping[str, str] | None = None) -> Outcome:
    """Train on this machine. Where a rank is killed, go on from the newest checkpoint, as often as a crash may.

    Args:
        next_job: what to train from now on.
        variables: of the ranks' environment, before those of this process.

    Raises:
        Cancelled: stopped without saving.
    """
    tries, signals, called = Tries(), StopSignals(), 0.0
    with signals.caught():  # those that come between two attempts
        while True:
            job = next_job()
            if called:
                job = job.model_copy(update={"called": called})
            prepare_folder(job)
            watchers.on_start(job)
            outcome = Torchrun(job, watchers, variables=variables).run()
            if not outcome.killed or tries.are_spent(newest := next_job().resume):
                return outcome
            if reason := signals.first or watchers.stop_reason():
                return Outcome(status="preempted", reason=reason, step=step_of(newest))
            log.warning("%s; once more from %s", outcome.reason, place_of(newest))
            called = time.time()


def training_id(model: ModelConfig, config: TrainConfig, dataset_id: str, start: str, since: str = "") -> str:
    """A hash of everything that decides the result, default values left out.

    Args:
        start: digest of the weights that it starts from, empty where they are random.
        since: id of the dataset that those have seen, empty where all samples are drawn alike.
    """
    return digest(
        {
            **({"since": since} if since else {}),
            "stage": STAGE_VERSION,
            "dataset": dataset_id,
            "model": model.result_fields(),
            "train": config.result_fields(),
            "init": start,
        }
    )


def check_start(init: str, model: ModelConfig, dataset: Dataset) -> str:
    """Hold the weights to start from against model and dataset; returns their digest.

    Raises:
        UserError: `init` is no checkpoint, or one of another shape, or of another tokenizer than the dataset's.
    """
    checkpoint = open_checkpoint(init)
    if checkpoint is None:
        raise UserError("not a checkpoint", where=init, hint="make one with `gptpipe import`")
    config = checkpoint.json(CONFIG)
    check_same_shape(model, model_config_from_hf(config, init), init)
    theirs, have = str(ours_in(config, init).get("tokenizer", "gpt2")), str(dataset.tokenizer["name"])
    if theirs != have:
        raise UserError(
            f"the dataset was made with the tokenizer {have}, the weights to start from use {theirs}",
            where=init,
            hint=f"tokenize again with --tokenizer {init if is_own(theirs) else theirs}, "
            f"or `gptpipe import` the weights with --tokenizer {dataset.url if is_own(have) else have}",
        )
    return checkpoint.model_sha256


def attempt_folder(base: str, force: bool) -> str:
    """The newest attempt's folder, or with `force` the next one after a finished attempt."""
    number, folder = 1, base
    while storage.exists(storage.join(f"{base}-{number + 1}", OUTCOME)) or _has_checkpoint(f"{base}-{number + 1}"):
        number += 1
        folder = f"{base}-{number}"
    ended = Outcome.read(storage.join(folder, OUTCOME)) if force else None
    return f"{base}-{number + 1}" if ended is not None and ended.status == "finished" else folder


def _has_checkpoint(folder: str) -> bool:
    return newest_checkpoint(folder) is not None


def check_fits(model: ModelConfig, config: TrainConfig, dataset: Dataset) -> None:
    """A UserError when model, ranks, device and dataset do not fit together."""
    check_ranks(config.batch_size, config.nproc * config.nodes)
    check_vocab_size(model, dataset.tokenizer["vocab_size"], dataset.tokenizer["name"])


def check_vocab_size(model: ModelConfig, tokens: int, name: str) -> None:
    """A UserError when the model has not as many tokens as the tokenizer that the data is, or will be, made with."""
    if model.vocab_size != tokens:
        raise UserError(
            f"the model has {model.vocab_size} tokens, the dataset's tokenizer {name!r} has {tokens}",
            where="model.vocab_size",
            hint=f"set model.vocab_size={tokens}",
        )


def check_devices(config: TrainConfig) -> None:
    """A UserError when this machine has fewer GPUs than ranks that need one."""
    if config.device == "cuda":
        import torch

        from gptpipe.model.precision import pick_device

        pick_device("cuda")
        have = torch.cuda.device_count()
        if have < config.nproc:
            raise UserError(
                f"{counted(config.nproc, 'rank')} on CUDA, a GPU each; torch sees {have}",
                where="train.nproc",
                hint="use fewer ranks",
            )


def prepare_tokens(
    model: ModelConfig, config: TrainConfig, dataset: Dataset, cache: TokenCache, news: np.ndarray | None = None
) -> None:
    """Decode the dataset into the local cache, unless it is shuffled in two levels and decoded on the way.

    Args:
        news: stretches of new text, as `SampleOrder` takes them.

    Raises:
        UserError: a split is shorter than one window, does not fit into the cache, or has no such corpus.
    """
    if dataset.total("shards", "validation"):
        TokenStream(dataset, "validation", cache).prepare()
    stream = TokenStream(dataset, "train", cache)
    if config.shuffle == "global":
        stream.prepare()
    # a pool is read while the next is fetched, and a block lies in up to two row groups
    elif (needed := 4 * config.shuffle_blocks * ROW_GROUP_TOKENS * stream.dtype.itemsize) > cache.limit:
        raise UserError(
            f"two pools of {config.shuffle_blocks} blocks need {needed / 1e9:.1f} GB of cache, "
            f"there are {cache.limit / 1e9:.1f}",
            where="train.shuffle_blocks",
            hint="lower it, or raise GPTPIPE_CACHE_GIGABYTES",
        )
    SampleOrder(stream, model.context_length, config, news)


def prepare_folder(job: Job) -> None:
    """A fresh job folder that holds the metrics up to the step training goes on from."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    (job.folder / METRICS).write_bytes(metrics_before(job))
    job.write()


def _result(identity: str, training: str, dataset: Dataset, outcome: Outcome, *, already_done: bool) -> TrainResult:
    return TrainResult(
        id=identity,
        training=training,
        checkpoint=outcome.last_checkpoint(training),
        best_checkpoint=outcome.best_checkpoint(training),
        dataset=dataset.url,
        steps=outcome.step,
        tokens=outcome.tokens,
        train_loss=outcome.train_loss,
        validation_loss=outcome.validation_loss,
        tokens_per_second=outcome.tokens_per_second,
        already_done=already_done,
    )
