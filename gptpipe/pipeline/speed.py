"""How fast a training will run and the memory it will take: as the last runs of its kind did, or as measured now."""

from __future__ import annotations

import logging
import platform
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptpipe import storage
from gptpipe.config import Corpus, DataConfig, PipelineConfig, digest
from gptpipe.cores import usable_cores
from gptpipe.corpus.build import tokenize
from gptpipe.errors import UserError
from gptpipe.launch.job import Job
from gptpipe.launch.torchrun import Cancelled, Watchers
from gptpipe.launch.training import train
from gptpipe.model.precision import pick_device
from gptpipe.tracking.client import Tracking

log = logging.getLogger(__name__)

SPEED_TAG = "gptpipe.speed"  # of a run: what its speed depends on, as a digest
DEVICE_TAG = "device"
SECONDS = 5.0
_WARMUP = 2  # logged steps
_LAST = 3  # runs
_SHAPE = (
    "optimizer",
    "batch_size",
    "precision",
    "nproc",
    "nodes",
    "micro_batch",
    "activation_checkpointing",
    "compile",
)


@dataclass(frozen=True)
class Speed:
    """Of a training.

    Attributes:
        tokens_per_second: of all ranks together, while they train.
        memory: bytes of one rank at most, the process itself counted on a CPU.
        source: where the numbers are from, in a few words.
        with_validation: whether validations and checkpoints are in that speed already.
        start_seconds: from the call to the first step; 0 where it is not known.
    """

    tokens_per_second: float
    memory: float
    source: str
    with_validation: bool
    start_seconds: float = 0.0


def device_kind(device: str = "auto") -> str:
    """The device on which this machine trains, as a person compares machines by: `2 cores of AMD EPYC …`."""
    if device == "cuda" and not torch.cuda.is_available():
        return "GPUs of other machines"
    if pick_device(device) == "cuda":
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return f"{usable_cores()} cores of {_processor()}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def speed_key(config: PipelineConfig) -> str:
    """A digest of what the speed depends on: the model's shape, how a step is computed, and the device."""
    train = config.train.model_dump(mode="json")
    shape = {name: train[name] for name in _SHAPE}
    model = config.model.model_dump(mode="json", exclude={"init", "layer_norm_epsilon"})
    return digest({"model": model, "train": shape, "device": device_kind(config.train.device)})


def speed_tags(config: PipelineConfig) -> dict[str, str]:
    """What a run says of its device and its kind, so that the next plan knows what to expect."""
    return {DEVICE_TAG: device_kind(config.train.device), SPEED_TAG: speed_key(config)}


def last_speed(config: PipelineConfig, tracking: Tracking) -> Speed | None:
    """As the last finished runs of this shape on such a device had it; None where there is none, or no answer."""
    try:
        with tracking.reached() as client:
            runs = client.search_runs(
                [tracking.experiment_id(client)],
                f"tags.`{SPEED_TAG}` = '{speed_key(config)}' AND status = 'FINISHED'",
                max_results=_LAST,
                order_by=["start_time DESC"],
            )
    except UserError as error:
        log.warning("plan: the speed of earlier runs is not known: %s", error)
        return None
    measured = [run.data.metrics for run in runs if "train/active_seconds" in run.data.metrics]
    speeds = [each["train/tokens"] / each["train/active_seconds"] for each in measured if each["train/active_seconds"]]
    if not speeds:
        return None
    memory = max(each.get("train/memory_mb", 0.0) for each in measured) * 1e6
    said = "the last run" if len(speeds) == 1 else f"the last {len(speeds)} runs"
    source = f"{said} of this shape on {device_kind(config.train.device)}"
    return Speed(statistics.median(speeds), memory, source, with_validation=True)


@dataclass
class _Stopwatch:
    """Sees the steps of a training, and has it stopped after enough of them."""

    began: float = field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def add(self, lines: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        self.lines += lines
        self.seen += [now] * len(lines)

    def is_enough(self) -> bool:
        steps = [line for line in self.lines if "train/active_seconds" in line]
        if len(steps) <= _WARMUP + 1:
            return False
        return bool(steps[-1]["train/active_seconds"] - steps[_WARMUP]["train/active_seconds"] >= SECONDS)


def measure_speed(config: PipelineConfig) -> Speed:
    """Train for some five seconds on random text, with the ranks and the settings of the configuration, and stop.

    Raises:
        UserError: it cannot be trained here, for instance since memory does not suffice.
    """
    watch = _Stopwatch()
    changes = {"steps": 1_000_000, "warmup_steps": 1, "log_every": 1, "validate_every": 0, "checkpoint_every": 0}
    train_config = config.train.model_copy(update={**changes, "nodes": 1, "mixture": {}, "decay_steps": 0})
    storage.jobs_home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage.jobs_home(), prefix="plan-") as name:
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
        text = Path(name) / "text.txt"
        text.write_text(" ".join(draw.choices(words, k=20_000 + 8 * config.model.context_length)))
        data = DataConfig(corpus=[Corpus(url=str(text))], tokenizer=config.data.tokenizer, validation=0)
        dataset = tokenize(data, f"{name}/data").dataset
        watch.began = time.monotonic()
        watchers = Watchers(
            on_start=watch.jobs.append, on_line=log.debug, on_metrics=watch.add, was_cancelled=watch.is_enough
        )
        try:
            train(config.model, train_config, data=dataset, out=f"{name}/trainings", watchers=watchers)
        except Cancelled:
            if not watch.is_enough():  # a person has had enough before
                raise
    for job in watch.jobs:
        shutil.rmtree(job.folder, ignore_errors=True)
    steps = [line for line in watch.lines if "train/active_seconds" in line]
    first, last = steps[_WARMUP], steps[-1]
    seconds = last["train/active_seconds"] - first["train/active_seconds"]
    start = watch.seen[0] - watch.began
    memory = max(line["train/memory_mb"] for line in steps) * 1e6
    source = f"measured for {seconds:.0f} s on {device_kind(config.train.device)}"
    return Speed((last["tokens"] - first["tokens"]) / seconds, memory, source, False, start)
