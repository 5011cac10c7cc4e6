"""tokenize: corpora → Parquet token shards, mapped over shards as Prefect tasks."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import report
from gptpipe import storage
from gptpipe.config import DataConfig, Section
from gptpipe.data.build import batched_by_size, shard_pool, worker_count
from gptpipe.data.build import tokenize as make_dataset
from gptpipe.data.shards import ShardReport, ShardTask, make_shard
from gptpipe.settings import settings
from gptpipe.wording import counted

log = logging.getLogger("gptpipe.flows")
WINDOW = 4  # tasks submitted ahead, per worker


class TokenizeParameters(Section):
    """From text to token shards."""

    data: DataConfig = Field(default_factory=DataConfig, description="The texts and how they are cut up")
    storage: str | None = Field(None, description="Folder or s3:// URL; by default GPTPIPE_STORAGE")


@flow(name="tokenize", task_runner=ThreadPoolTaskRunner(max_workers=64))  # type: ignore[arg-type]
def tokenize(parameters: TokenizeParameters) -> dict[str, Any]:
    """Make the dataset of these texts, unless it is there."""
    out = storage.join(parameters.storage or settings().storage_url, "datasets")
    result = make_dataset(parameters.data, out, run_as_tasks)
    if result.already_done:
        log.info("tokenize: already done, %s", result.dataset)
    else:
        log.info(
            "tokenize: %s, %s in %s, %.1f MB/s → %s",
            counted(result.documents, "document"),
            counted(result.tokens, "token"),
            counted(result.shards, "shard"),
            result.megabytes_per_second,
            result.dataset,
        )
    report.table("dataset", "The token dataset", result.as_dict())
    return result.as_dict()


def run_as_tasks(shards: list[ShardTask], workers: int) -> Iterator[ShardReport]:
    """Make shards as Prefect tasks, a bounded window of them at a time, the work in processes of this machine."""
    if not shards:
        return
    count = worker_count(shards, workers)
    with shard_pool(count) as pool:

        @task(name="make shards", cache_policy=NO_CACHE, persist_result=False)
        def make_shards(batch: list[ShardTask]) -> list[ShardReport]:
            return list(pool.map(make_shard, batch))

        waiting: deque[Any] = deque()
        try:
            for batch in batched_by_size(shards):
                if len(waiting) >= WINDOW * count:
                    yield from waiting.popleft().result()
                waiting.append(make_shards.submit(batch))
            while waiting:
                yield from waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
