"""One training, followed into MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gptpipe.config import PipelineConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import Preempted
from gptpipe.launch.attempts import step_of
from gptpipe.launch.hosts import Hosts
from gptpipe.launch.job import Job
from gptpipe.launch.torchrun import Cancelled, Watchers
from gptpipe.launch.training import TrainResult, train
from gptpipe.progress import Progress
from gptpipe.tracking.client import RunLink, Tracking
from gptpipe.tracking.follow import INIT_TAG, SINCE_TAG, TrainingTracker
from gptpipe.tracking.results import read_metrics
from gptpipe.wording import first_line


def train_and_track(
    config: PipelineConfig,
    tracking: Tracking,
    *,
    data: str,
    out: str,
    init: str = "",
    since: str = "",
    resume: bool = True,
    tags: dict[str, str] | None = None,
    cache: TokenCache | None = None,
    watchers: Watchers | None = None,
    hosts: Hosts | None = None,
    variables: Mapping[str, str] | None = None,
    title: str = "",
    on_link: Callable[[str], None] = lambda _: None,
) -> tuple[TrainResult, RunLink | None]:
    """`launch.train`, followed into an MLflow run. The run ends as KILLED or FAILED when training does.

    Args:
        variables: of the ranks' environment, as `launch.train` takes them.
        title: what its progress lines begin with, where several trainings go on at once.
        on_link: called, from a thread of the tracker's own, with the address of the run's page once there is one.
    """
    start = {name: place for name, place in ((INIT_TAG, init), (SINCE_TAG, since)) if place}
    tracker = TrainingTracker(tracking, config, open_dataset(data), {**start, **(tags or {})}, on_link)
    steps_tokens = config.train.batch_size * config.model.context_length
    progress = Progress(config.train.steps, steps_tokens, title)
    given = watchers or Watchers()

    def started(job: Job) -> None:
        tracker.start(job.training)
        progress.begin = step_of(job.resume)
        given.on_start(job)

    def metrics(lines: list[dict[str, Any]]) -> None:
        tracker.add(lines)
        progress(lines)
        given.on_metrics(lines)

    following = replace(given, on_start=started, on_metrics=metrics)
    link = None
    try:
        result = train(
            config.model,
            config.train,
            data=data,
            out=out,
            init=init,
            since=since,
            resume=resume,
            force=config.force,
            cache=cache,
            watchers=following,
            hosts=hosts,
            variables=variables,
        )
    except BaseException as stopped:
        if tracker.started:
            with suppress(Exception):  # the first reason is the one to tell
                status = "KILLED" if isinstance(stopped, (Preempted, Cancelled)) else "FAILED"
                tracker.finish(status, first_line(stopped))
        raise
    if result.already_done:
        tracker.start(result.training, is_done=True)
        tracker.add(read_metrics(result.training))
    if tracker.started:
        link = tracker.finish("FINISHED")
    return result, link
