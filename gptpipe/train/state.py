"""Where a training is: everything that is saved with a checkpoint but weights and moments."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """The state of a training, as `state.json` holds it.

    Attributes:
        step: optimizer steps done, those that were skipped counted.
        samples_seen: windows read by all ranks: the whole state of the loader.
        best_loss, best_step: lowest validation loss of a saved step so far.
        skipped_steps: steps not taken, because something was not finite or the loss was a spike.
        bad_in_a_row: of these, the last ones in a row.
        spike_window: ordinary losses that a spike is measured against.
        interval_nats, interval_tokens: summed loss over all ranks and its targets since the last logged step.
        energy_joules: of all ranks' devices since the first step; None where one of them did not count all the time.
        threads, micro_batch, precision, compiled, world_size: what the sums depend on; used again after a stop on as
            many ranks, so that they come out bit for bit.
    """

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    skipped_steps: int = 0
    bad_in_a_row: int = 0
    spike_window: list[float] = field(default_factory=list)
    interval_nats: float = 0.0
    interval_tokens: int = 0
    training_seconds: float = 0.0
    energy_joules: float | None = None
    threads: int = 0
    micro_batch: int = 0
    precision: str = ""
    compiled: bool | None = None
    world_size: int = 0
    bucket_layout: str = "final before the first step"
