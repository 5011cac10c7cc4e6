"""The training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gptpipe.config.fields import Section, operational, result


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
    muon_learning_rate: float = result(
        0.0, "Muon's highest learning rate, whose updates have the size of AdamW's; 0: learning_rate", ge=0, lt=10
    )
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
    replay: float = result(
        0.5,
        "Share of the samples that come from text the champion has seen, where a training goes on from it; the rest "
        "hold text that is new since",
        "fraction",
        ge=0,
        lt=1,
    )
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
        0, "Go on with this many machines if the others do not come; 0 waits for all", "machines", ge=0, le=1024
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
    compile_timeout: float = operational(
        600.0, "Time that compiling may take; after it training goes on without", "seconds", gt=0
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
