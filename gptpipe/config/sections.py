"""Everything a person can choose, as pydantic models: the CLI's options, the YAML files and Prefect's form.

Every field says what it is, in which unit and within which bounds. Every field is also marked as *result*
(it decides what comes out, so it is part of a run's id) or *operational* (where, how fast, how often it is
saved: changing it continues the same run).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gptpipe.config.fields import Section, operational, result
from gptpipe.config.presets import PRESETS, preset_values
from gptpipe.config.values import deep_merge


class ModelConfig(Section):
    """The shape of a GPT-2-family model (Radford et al. 2019)."""

    vocab_size: int = result(50257, "Number of token ids the model knows", "tokens", ge=2)
    context_length: int = result(1024, "Longest sequence the model sees at once", "tokens", ge=1, le=1 << 20)
    n_layer: int = result(12, "Number of transformer blocks", ge=1, le=1024)
    n_head: int = result(12, "Number of attention heads per block; divides n_embd", ge=1)
    n_embd: int = result(768, "Width of the residual stream", "features", ge=1)
    dropout: float = result(
        0.0, "Dropout after embeddings, on attention weights and on both residual branches", "probability", ge=0, lt=1
    )
    qkv_bias: bool = result(True, "Whether the query, key and value projections have a bias")
    tie_weights: bool = result(True, "Whether the output layer shares its matrix with the token embedding")
    init: Literal["gpt2", "torch"] = result(
        "gpt2",
        "Initial weights: GPT-2's normal(0, 0.02) with scaled residual projections, or torch's defaults",
    )
    layer_norm_epsilon: float = result(1e-5, "Added to the variance in layer norms", gt=0, lt=0.1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.n_embd % self.n_head:
            fitting = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            near = ", ".join(map(str, sorted(sorted(fitting, key=lambda n: abs(n - self.n_head))[:6])))
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}: choose n_head from {near}"
            )
        return self


class Corpus(Section):
    """One source of text: a file, folder, glob, `s3://` URL or built-in (`stdlib:`)."""

    url: str = result(..., "File, folder, glob, s3:// URL, or a built-in such as stdlib:", min_length=1)
    name: str | None = result(
        None,
        "Name in the index and the metrics; by default the built-in's, or corpus, corpus-2, …",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) == 1 and None in value.values():
            value = f"{next(iter(value))}:"  # YAML reads `stdlib:` as a key without a value
        return {"url": value} if isinstance(value, str) else value


class DataConfig(Section):
    """From text to token shards."""

    corpus: list[Corpus] = result([Corpus(url="stdlib:")], "The texts to train on", min_length=1)
    tokenizer: str = result(
        "",
        "A tiktoken encoding's name (gpt2 needs no network), or a folder, URL or hf:NAME of a Hugging Face tokenizer; "
        "empty is that of the weights to start from, or gpt2",
    )
    validation: float = result(
        0.1, "Share of the documents kept for validation, chosen by a hash of their text", "fraction", ge=0, lt=1
    )
    text_field: str = result(
        "text", "Field of .jsonl lines and column of .parquet files that holds the text", min_length=1
    )
    errors: Literal["strict", "replace", "skip"] = result(
        "strict",
        "Text that is not UTF-8: stop and name it, replace the bytes, or skip the document and count it",
    )
    on_error: Literal["stop", "skip"] = result(
        "stop", "A JSONL line or Parquet row that cannot be read: stop and name it, or skip it and count and list it"
    )
    drop_duplicates: bool = result(
        False, "Leave out exact copies of documents, over all corpora; the smallest document id stays"
    )
    min_bytes: int = result(0, "Shortest document kept, UTF-8, before nfc", "bytes", ge=0)
    max_bytes: int = result(0, "Longest document kept, UTF-8, before nfc; 0 is any", "bytes", ge=0)
    nfc: bool = result(False, "Bring all text into Unicode's composed normal form, NFC")
    shard_megabytes: int = result(
        16,
        "Source text a shard holds, roughly; a file over an eighth of it has its own, a larger one is cut into ranges",
        "MB",
        ge=1,
        le=4096,
    )
    workers: int = operational(0, "Processes that tokenize; 0 is one per core", "processes", ge=0, le=4096)

    @model_validator(mode="after")
    def _lengths_meet(self) -> DataConfig:
        if self.max_bytes and self.max_bytes < self.min_bytes:
            raise ValueError(
                f"max_bytes {self.max_bytes} is less than min_bytes {self.min_bytes}: nothing would be kept"
            )
        return self


class TrainConfig(Section):
    """The training loop."""

    steps: int = result(1000, "Optimizer steps", "steps", ge=1)
    batch_size: int = result(32, "Windows of context_length tokens per step, over all ranks", "windows", ge=1)
    learning_rate: float = result(6e-4, "Highest learning rate", gt=0, lt=10)
    min_learning_rate: float = result(
        0.1, "Learning rate at the last step, as a share of the highest", "fraction", ge=0, le=1
    )
    warmup_steps: int = result(50, "Steps over which the learning rate rises from zero", "steps", ge=0)
    schedule: Literal["cosine", "linear", "wsd"] = result(
        "cosine", "How the learning rate falls; wsd (warmup, stable, decay) falls linearly, and only at the end"
    )
    decay_steps: int = result(
        0, "Last steps over which it falls; 0 is all after the warm-up, with wsd a fifth of all", "steps", ge=0
    )
    optimizer: Literal["adamw", "muon"] = result(
        "adamw", "AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest"
    )
    weight_decay: float = result(0.1, "Decay of the weights, on matrices only unless decay_vectors", ge=0, lt=10)
    decay_vectors: bool = result(False, "Whether biases and layer norms decay too")
    beta1: float = result(0.9, "AdamW's decay of the mean of the gradient", ge=0, lt=1)
    beta2: float = result(0.95, "AdamW's decay of the mean of its square", ge=0, lt=1)
    epsilon: float = result(1e-8, "AdamW's epsilon", gt=0, lt=1)
    muon_momentum: float = result(0.95, "Muon's momentum", ge=0, lt=1)
    grad_clip: float = result(1.0, "Largest norm of the whole gradient; 0 is unclipped", ge=0)
    mixture: dict[str, float] = result(
        {}, "Weight of each corpus by its name, in tokens drawn; empty draws every token once an epoch"
    )
    shuffle: Literal["global", "two-level"] = result(
        "global",
        "global: any window anywhere in the epoch, all tokens decoded on the local disk. two-level: blocks of a "
        "million tokens, then windows within a pool of them, for datasets larger than the disk",
    )
    shuffle_blocks: int = result(256, "Blocks in a pool of the two-level shuffle", "blocks", ge=1, le=1 << 20)
    join_documents: bool = result(
        True, "Windows run on over the ends of documents; otherwise each lies in one, padded, padding not scored"
    )
    precision: Literal["auto", "float32", "bfloat16"] = result(
        "auto", "Autocast of the forward pass: bfloat16 where the device has it, or as named"
    )
    seed: int = result(1337, "Seed of the weights, the order of samples and dropout", ge=0, lt=1 << 63)
    spike_action: Literal["off", "warn", "skip", "rollback"] = result(
        "off",
        "What a spike of the loss leads to: a warning, the step not being taken, or weights and moments of the last "
        "checkpoint while samples go on",
    )
    spike_zscore: float = result(
        6.0, "Standard deviations above the mean of the last losses that make a spike", "standard deviations", gt=0
    )
    spike_window: int = result(128, "Ordinary losses that mean and deviation are taken over", "steps", ge=2, le=10000)
    deterministic: bool = result(False, "On CUDA, only kernels whose result is the same bits every time (slower)")
    device: Literal["auto", "cpu", "cuda"] = result("auto", "Where to train; auto is CUDA where there is one")
    validate_every: int = operational(100, "Steps between validations; 0 is only at the end", "steps", ge=0)
    validate_tokens: int = operational(
        65536, "Validation tokens each time, spread evenly over the split; 0 is all", "tokens", ge=0
    )
    validate_train: bool = operational(False, "Score as many tokens of the training split too, without dropout")
    stop_after_bad_steps: int = operational(
        10, "Steps in a row whose gradient is not finite (none is taken) that end the training", "steps", ge=1
    )
    checkpoint_every: int = operational(100, "Steps between checkpoints; 0 is only at the end", "steps", ge=0)
    keep_checkpoints: int = operational(2, "Latest checkpoints kept; the best is kept beside them", ge=1)
    log_every: int = operational(10, "Steps between lines in metrics.jsonl", "steps", ge=1)
    nproc: int = operational(1, "Ranks per machine", "processes", ge=1, le=1024)
    nodes: int = operational(1, "Machines that train together; more than one need a Prefect server", ge=1, le=1024)
    min_nodes: int = operational(
        0, "Go on with so many machines when the others do not come; 0 waits for all of them", "machines", ge=0, le=1024
    )
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=2**53)] = operational(
        "auto",
        "Windows a rank takes at once, accumulated to its share of batch_size; auto is as many as fit into memory",
        "windows",
    )
    activation_checkpointing: bool = operational(
        False, "Compute activations again in the backward pass: a third slower, a fraction of the memory"
    )
    compile: Literal["auto"] | bool = operational(
        "auto", "Compile the blocks with torch.compile; auto is on CUDA, where the minute it takes is soon earned"
    )
    threads: int = operational(0, "CPU threads per rank; 0 shares the cores out", "threads", ge=0)
    max_hours: float = operational(0.0, "Stop resumable after this long; 0 is never", "hours", ge=0)
    save_timeout: float = operational(60.0, "Time a preempted run has to save", "seconds", gt=0)

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.steps and self.steps > 1:
            none_left = f"warmup_steps {self.warmup_steps} leaves none of the {self.steps} steps to train"
            raise ValueError(f"{none_left}: lower train.warmup_steps")
        if self.decay_steps > self.steps - self.warmup_steps:
            raise ValueError(f"decay_steps {self.decay_steps} and warmup_steps are more than the {self.steps} steps")
        return self

    @model_validator(mode="after")
    def _order_is_possible(self) -> TrainConfig:
        if self.mixture and (min(self.mixture.values()) < 0 or not sum(self.mixture.values())):
            raise ValueError("mixture: weights are 0 or more and must not sum to zero")
        if self.shuffle == "two-level" and not self.join_documents:
            raise ValueError("join_documents=false needs shuffle=global: where documents end is seen in decoded tokens")
        return self


class EvaluateConfig(Section):
    """What a model is scored on."""

    data: str | None = result(
        None, "A fixed dataset to score on, so that last month's numbers still compare; by default the run's own"
    )
    split: Literal["validation", "train"] = result("validation", "Split of the dataset that is scored")
    max_tokens: int = result(
        0, "Tokens scored, roughly: whole windows, spread evenly over the split; 0 is all", "tokens", ge=0
    )
    context_length: int = result(0, "Tokens per window; 0 is the model's context", "tokens", ge=0)
    stride: int = result(
        0,
        "Tokens from one window to the next: less than a window, and every token is predicted with at least the rest "
        "of it before it; 0 is a whole window, so that none overlap",
        "tokens",
        ge=0,
    )
    documents: Literal["joined", "apart"] = result(
        "joined",
        "Joined to one stream, as in training, or each apart after <|endoftext|>, as lm-evaluation-harness does",
    )
    tasks: list[str] = result([], "Tasks with a right answer, lambada:FILE or hellaswag:FILE, JSON lines")
    precision: Literal["float32", "bfloat16"] = result("float32", "Type of the large matrices")
    device: Literal["auto", "cpu", "cuda"] = operational(
        "auto", "Where it is computed; auto takes a GPU if there is one"
    )
    nproc: int = operational(1, "Processes, a GPU each where there are some", "ranks", ge=1, le=64)
    batch_size: int = operational(8, "Windows scored at once", "windows", ge=1)

    @model_validator(mode="after")
    def _windows_leave_nothing_out(self) -> EvaluateConfig:
        if self.context_length and self.stride > self.context_length:
            raise ValueError(f"a stride of {self.stride} leaves tokens out between windows of {self.context_length}")
        return self


class SampleConfig(Section):
    """What is generated to look at."""

    prompts: list[str] = result(
        ["Every effort moves you", "def main(", "import os\n\n\nclass ", "    def __init__(self"],
        "Texts to continue",
        min_length=1,
    )
    max_new_tokens: int = result(80, "Tokens generated per prompt", "tokens", ge=1, le=1 << 20)
    temperature: float = result(0.8, "Divides the logits; 0 takes the likeliest token", ge=0, le=100)
    top_k: int = result(50, "Draw from the k likeliest tokens; 0 is all", "tokens", ge=0)
    top_p: float = result(1.0, "Draw from the fewest tokens whose probability reaches this", gt=0, le=1)
    min_p: float = result(0.0, "Draw from tokens at least so likely beside the likeliest", ge=0, le=1)
    repetition_penalty: float = result(1.0, "Makes tokens that are there already less likely; 1 does not", gt=0, le=10)
    stop: list[str] = result([], "Texts before which a continuation ends")
    slide: Literal["one", "half"] = result(
        "one",
        "Past the context: drop one token at a time and compute all anew, or drop half a context and go on from there",
    )
    precision: Literal["float32", "bfloat16"] = result("float32", "Type of the large matrices")
    batch_size: int = operational(16, "Prompts continued at once; the next begins where one ends", "prompts", ge=1)
    seed: int = result(1337, "Seed of the draws", ge=0, lt=1 << 63)

    @field_validator("stop")
    @classmethod
    def _stop_holds_no_empty_text(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text is everywhere")
        return value


class PromoteConfig(Section):
    """What happens to the finished model."""

    register_model: bool = operational(True, "Register the model as a new version in MLflow")
    model_name: str = operational(
        "gptpipe", "Name of the registered model; without / and :", min_length=1, max_length=200
    )
    alias: str = operational("champion", "Alias that moves to a better model", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")

    @field_validator("model_name")
    @classmethod
    def _name_is_one_of_mlflow(cls, value: str) -> str:
        if not value.strip() or any(c in "/:" or not c.isprintable() for c in value):
            raise ValueError(f"{value!r} is no name of a model in MLflow: it holds none of / and : and is not blank")
        return value

    @field_validator("alias")
    @classmethod
    def _alias_is_free(cls, value: str) -> str:
        if value == "latest" or re.fullmatch(r"v\d+", value):
            raise ValueError(f"{value!r} is an alias that MLflow keeps for itself: choose another")
        return value


class PipelineConfig(Section):
    """The whole pipeline. `preset` fills in `model`, `train`, … before anything else given here."""

    preset: Literal[PRESETS] = result("nano", "Model and training settings to start from")  # type: ignore[valid-type]
    init: str = result(
        "scratch",
        "Weights to start from: scratch, champion, or any WEIGHTS (folder, file, hf:NAME, models:/…), whose shape the "
        "model then has",
    )
    init_context_length: int = result(
        0,
        "Context of a model that starts from weights: 0 is theirs, less cuts their position embeddings, more repeats "
        "them",
        "tokens",
        ge=0,
        le=1 << 20,
    )
    data: DataConfig = Field(default_factory=DataConfig, description="From text to token shards")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The shape of the model")
    train: TrainConfig = Field(default_factory=TrainConfig, description="The training loop")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="What the model is scored on")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="What is generated to look at")
    promote: PromoteConfig = Field(default_factory=PromoteConfig, description="What happens to the finished model")
    export: str | None = operational(
        None, "Folder or URL where the finished model is written as transformers reads it; an earlier one is replaced"
    )
    force: bool = operational(False, "Train again as a new attempt even if this training is finished")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = value.get("preset", "nano")
        if name not in PRESETS:
            return value
        preset, given = preset_values(name), value.get("train")
        if isinstance(given, dict) and isinstance(steps := given.get("steps"), int):
            usual = preset["train"]  # fewer steps have as large a share of warm-up
            usual["warmup_steps"] = usual["warmup_steps"] * max(0, min(steps, usual["steps"])) // usual["steps"]
        return deep_merge(preset, value)

    @field_validator("init")
    @classmethod
    def _init_not_empty(cls, value: str) -> str:
        return value.strip() or "scratch"
