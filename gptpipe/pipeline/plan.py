"""What a retraining will come to, before anything is spent: text, steps, FLOPs, memory, time, storage, and advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from gptpipe import storage
from gptpipe.config import ModelConfig, PipelineConfig
from gptpipe.corpus.estimate import Amount, amount_of
from gptpipe.launch.job import OUTCOME, Outcome
from gptpipe.launch.training import training_id
from gptpipe.model.gpt import empty_model
from gptpipe.model.precision import Precision, pick_device
from gptpipe.pipeline.advice import advice
from gptpipe.pipeline.speed import Speed, last_speed, measure_speed
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.registry import last_comparison, starting_weights
from gptpipe.train.budget import MemoryBudget
from gptpipe.weights.adapt import starting_from
from gptpipe.weights.checkpoint import newest_checkpoint
from gptpipe.weights.find import read_weights
from gptpipe.wording import cell, counted, duration

_FORWARD = 1 / 3  # of a step's time: a validation has no backward pass


@dataclass(frozen=True)
class Plan:
    """Numbers of a retraining that is about to run.

    Attributes:
        steps, tokens: that will be trained on. epochs: times that the text is seen.
        parameters: of the model. parameters_without_embeddings: without look-up tables.
        flops: of the whole training.
        memory: bytes of one rank by part, as counted from the code. memory_at_once: of these, the most at one time.
        memory_in_all: bytes of one rank as the last runs or a measurement had it; None where neither is there.
        tokens_per_second, seconds: None where the speed is not known. speed: where it is from.
        checkpoint_bytes: of one with its optimizer. storage_bytes: of what is kept at the end.
        skipped: what was done before and will not be done again.
        advice: sentences.
    """

    files: int
    bytes: int
    documents: int
    train_tokens: int
    validation_tokens: int
    is_estimate: bool
    steps: int
    tokens: int
    epochs: float
    parameters: int
    parameters_without_embeddings: int
    flops: float
    memory: dict[str, int]
    memory_at_once: int
    memory_in_all: float | None
    tokens_per_second: float | None
    seconds: float | None
    speed: str
    checkpoint_bytes: int
    storage_bytes: int
    skipped: list[str]
    advice: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def rows(self) -> dict[str, str]:
        """What a person reads, by name."""
        about = "about " if self.is_estimate else ""
        parts = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in self.memory.items())
        in_all = f"{self.memory_in_all / 1e9:.2f} GB in all; " if self.memory_in_all else ""
        rows = {
            "text": f"{about}{self.train_tokens:,} tokens to train on, {self.validation_tokens:,} held out; "
            f"{counted(self.documents, 'document')} in {counted(self.files, 'file')}, {self.bytes / 1e6:,.1f} MB",
            "training": f"{counted(self.steps, 'step')} over {self.tokens:,} tokens: the text {self.epochs:.2f} times",
            "model": f"{self.parameters:,} parameters, {self.parameters_without_embeddings:,} without embeddings; "
            f"{self.tokens / self.parameters_without_embeddings:.2g} tokens for each of these",
            "FLOPs": f"{self.flops:.3g}",
            "memory per rank": f"{in_all}{self.memory_at_once / 1e9:.2f} GB by the step: {parts}",
            "time": "not known: no run of this shape on this device so far; `gptpipe plan` measures it",
            "storage": f"{self.storage_bytes / 1e6:,.0f} MB kept, {self.checkpoint_bytes / 1e6:,.0f} per checkpoint",
        }
        if self.seconds is not None and self.tokens_per_second is not None:
            rows["time"] = f"{duration(self.seconds)}, {self.tokens_per_second:,.0f} tokens/s ({self.speed})"
        if self.skipped:
            rows["done before"] = "; ".join(self.skipped)
        return rows

    @property
    def text(self) -> str:
        """For a terminal."""
        width = max(map(len, self.rows))
        lines = [f"{name:<{width}}  {value}" for name, value in self.rows.items()]
        return "\n".join([*lines, *(f"{'advice':<{width}}  {each}" for each in self.advice)])

    @property
    def markdown(self) -> str:
        """For a page in Prefect."""
        rows = [f"| {name} | {cell(value)} |" for name, value in self.rows.items()]
        return "\n".join(["| | |", "| --- | --- |", *rows, "", *(f"- {each}" for each in self.advice)])


def plan(config: PipelineConfig, store: str, tracking: Tracking, *, measure: bool) -> Plan:
    """What this configuration will come to.

    Args:
        store: folder or URL for everything that is made.
        measure: whether a training of five seconds tells the speed where no earlier run does.

    Raises:
        UserError: something given cannot be used.
    """
    config, start = _settled(config, tracking)
    amount = amount_of(config.data, storage.join(store, "datasets"))
    model, train = config.model, config.train
    shape = empty_model(model)
    parameters = shape.count_parameters()
    tokens = train.steps * train.batch_size * model.context_length
    budget = _budget(config)
    speed = last_speed(config, tracking) or (measure_speed(config) if measure else None)
    seconds = _seconds(config, amount, tokens, speed)
    checkpoint = 12 * parameters  # weights and two moments, float32
    kept = (train.keep_checkpoints + 1) * checkpoint
    made = 0 if amount.dataset else 2 * amount.tokens // 3  # of tokens in Parquet, two bytes each, as measured
    return Plan(
        files=amount.files,
        bytes=amount.bytes,
        documents=amount.documents,
        train_tokens=amount.train_tokens,
        validation_tokens=amount.validation_tokens,
        is_estimate=amount.dataset is None,
        steps=train.steps,
        tokens=tokens,
        epochs=tokens / max(1, amount.train_tokens),
        parameters=parameters,
        parameters_without_embeddings=parameters - _embeddings(model),
        flops=float(shape.flops_per_token()) * tokens,
        memory=budget.parts(),
        memory_at_once=budget.total,
        memory_in_all=speed.memory if speed else None,
        tokens_per_second=speed.tokens_per_second if speed else None,
        seconds=seconds,
        speed=speed.source if speed else "",
        checkpoint_bytes=checkpoint,
        storage_bytes=kept + made,
        skipped=_skipped(config, amount, store, start),
        advice=advice(config, amount, parameters - _embeddings(model), tokens, last_comparison(config, tracking)),
    )


def _settled(config: PipelineConfig, tracking: Tracking) -> tuple[PipelineConfig, str]:
    """The configuration with the shape of the weights that it starts from, and what these are."""
    weights = "" if config.init.startswith("hf:") else starting_weights(config, tracking)
    if not weights:
        return config, config.init if config.init.startswith("hf:") else ""
    read, shape = read_weights(weights), starting_from(config, weights).model
    if config.init_context_length:
        shape = shape.model_copy(update={"context_length": config.init_context_length})
    data = config.data.model_copy(update={"tokenizer": config.data.tokenizer or read.tokenizer})
    return config.model_copy(update={"model": shape, "data": data}), weights


def _embeddings(model: ModelConfig) -> int:
    """Numbers in look-up tables: of tokens, once, also where the output layer shares them; of positions in a GPT-2."""
    positions = model.context_length if model.architecture == "gpt2" else 0
    return (model.vocab_size + positions) * model.n_embd


def _budget(config: PipelineConfig) -> MemoryBudget:
    """Of a rank, with as many windows at once as its share of a batch has, or as were asked for."""
    train = config.train
    # a machine without a GPU can have others train
    device = "cuda" if train.device == "cuda" else pick_device(train.device)
    ranks = train.nproc * train.nodes
    share = max(1, train.batch_size // ranks)
    windows = share if train.micro_batch == "auto" else min(train.micro_batch, share)
    precision = _precision(train.precision, device)
    return MemoryBudget.of(config.model, train, windows, precision, device, ranks)


def _precision(precision: str, device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        return "float32" if precision == "float32" else "bfloat16"
    return Precision.choose(precision, torch.device(device)).name


def _seconds(config: PipelineConfig, amount: Amount, tokens: int, speed: Speed | None) -> float | None:
    if speed is None:
        return None
    train = config.train
    seconds = speed.start_seconds + tokens / speed.tokens_per_second
    if speed.with_validation or not amount.validation_tokens:
        return seconds
    each = min(train.validate_tokens or amount.validation_tokens, amount.validation_tokens)
    times = (train.steps // train.validate_every if train.validate_every else 0) or 1
    return seconds + times * each * (1 + train.validate_train) * _FORWARD / speed.tokens_per_second


def _skipped(config: PipelineConfig, amount: Amount, store: str, start: str) -> list[str]:
    """What the store holds already of what will be asked for."""
    if amount.dataset is None:
        return []
    skipped = [f"tokenize: dataset {amount.dataset.id} is there"]
    if start:  # the training's id needs the weights' own, which are not imported yet
        return skipped
    training = storage.join(store, "trainings", training_id(config.model, config.train, amount.dataset.id, ""))
    ended = Outcome.read(storage.join(training, OUTCOME))
    if ended is not None and ended.status == "finished" and not config.force:
        return [*skipped, f"train: {training.rpartition('/')[2][:12]} is finished"]
    if newest := newest_checkpoint(training):
        skipped.append(f"train: goes on from step {newest.step:,}")
    return skipped
