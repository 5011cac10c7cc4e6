"""The learning rate, and the guard against spikes, as functions of numbers."""

from __future__ import annotations

import itertools
import math

import pytest

from gptpipe.config import TrainConfig, parse
from gptpipe.errors import UserError
from gptpipe.train.schedule import learning_rate
from gptpipe.train.spikes import SpikeGuard


def rates(**train: object) -> list[float]:
    config = TrainConfig(**{"steps": 100, "warmup_steps": 10, "learning_rate": 1.0, "min_learning_rate": 0.1, **train})  # type: ignore[arg-type]
    return [learning_rate(step, config) for step in range(101)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_every_schedule_warms_up_and_ends_at_its_last_share(schedule: str) -> None:
    found = rates(schedule=schedule)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert found[10] == 1.0
    assert found[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))


def test_shapes() -> None:
    cosine, linear, wsd = (rates(schedule=name) for name in ("cosine", "linear", "wsd"))
    assert cosine[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert linear[55] == pytest.approx(0.55)
    assert wsd[10:81] == [1.0] * 71
    assert wsd[90] == pytest.approx(0.55)
    late = rates(schedule="cosine", decay_steps=40)
    assert late[10:61] == [1.0] * 51
    assert late[80] == pytest.approx(0.55)


def test_a_decay_longer_than_the_training_is_refused() -> None:
    with pytest.raises(UserError, match="decay_steps 95 and warmup_steps"):
        parse(TrainConfig, {"steps": 100, "warmup_steps": 10, "decay_steps": 95})


def test_a_spike_is_told_from_noise_and_not_remembered() -> None:
    losses: list[float] = []
    guard = SpikeGuard(32, 6.0, losses)
    noisy = [4.0 + 0.1 * math.sin(i) for i in range(64)]
    assert [guard.judge(loss) for loss in noisy] == ["ordinary"] * 64
    assert losses == noisy[-32:]
    assert guard.judge(4.3) == "ordinary"
    assert guard.judge(5.0) == "spike"
    assert guard.judge(float("nan")) == "spike"
    assert losses[-1] == 4.3
    assert guard.judge(2.0) == "ordinary"  # lower is never a spike


def test_too_few_losses_say_nothing() -> None:
    guard = SpikeGuard(128, 3.0, [4.0] * 15)
    assert guard.score(100.0) == 0
    assert guard.judge(100.0) == "ordinary"
    assert SpikeGuard(128, 3.0, [4.0] * 16).judge(4.1) == "spike"  # they hardly vary
    assert SpikeGuard(128, 3.0, [4.0] * 16).judge(4.001) == "ordinary"
