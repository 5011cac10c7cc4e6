"""Proves that work of many pieces says how far it is, and how often."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from gptpipe import GPT, ModelConfig, progress
from gptpipe.config import SampleConfig
from gptpipe.evaluation.continuations import likelihoods
from gptpipe.generation.generate import generate_ids
from gptpipe.progress import NowAndThen


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is said as progress while the test runs."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    level = progress.log.level
    progress.log.addHandler(handler)
    progress.log.setLevel(logging.INFO)
    yield found
    progress.log.removeHandler(handler)
    progress.log.setLevel(level)


def test_it_is_said_every_two_seconds_and_with_the_seconds_since_the_beginning(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    say = NowAndThen()
    for now[0] in (100.5, 101.9, 102.1, 103.0, 104.05, 104.2, 110.0):
        say(lambda seconds: f"after {seconds:.1f}")
    assert said == ["after 2.1", "after 4.2", "after 10.0"]


def test_generation_and_tasks_say_how_far_they_are(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    torch.manual_seed(1)
    model = GPT(ModelConfig(vocab_size=50, n_layer=1, n_head=2, n_embd=16, context_length=16))
    config = SampleConfig(max_new_tokens=2, temperature=0, batch_size=2)
    generate_ids(model, [[1]], config)
    assert said == []  # a single one is shown as it comes
    generate_ids(model, [[1], [2], [3]], config)
    assert [line.split("  ")[0] for line in said] == [f"continued {done} of 3 prompts" for done in (0, 2, 2, 3)]
    said.clear()
    likelihoods(model, [([1, 2], [3])] * 5, batch_tokens=4)
    assert [line.split("  ")[0] for line in said] == [f"scored {done} of 5 continuations" for done in (2, 4, 5)]
