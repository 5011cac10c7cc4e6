"""The law that made the losses comes out of them, with intervals that hold it; too little is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.errors import UserError
from gptpipe.tracking.results import DECIDING
from gptpipe.tracking.scaling import Law, Point, fit
from tests.fixtures.tracked import tracking

CHINCHILLA = Law(1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022
SIZES, TOKENS = (1e6, 3e6, 1e7, 3e7, 1e8), (2e7, 1e8, 5e8, 2e9)


def points(noise: float = 0.0, seed: int = 0, law: Law = CHINCHILLA) -> list[Point]:
    draws = np.random.default_rng(seed)
    return [
        Point(f"{n:g} {d:g}", n, d, law.loss(n, d) * float(np.exp(draws.normal(0, noise))), 1e12)
        for n, d in product(SIZES, TOKENS)
    ]


def test_the_law_behind_exact_losses_is_found() -> None:
    found = fit(points())
    law = found.law
    assert law.alpha == pytest.approx(0.34, abs=0.005)
    assert law.beta == pytest.approx(0.28, abs=0.005)
    assert law.irreducible == pytest.approx(1.69, abs=0.02)
    assert found.error < 1e-3
    # what is best by it is best among its neighbours
    size, tokens = law.best(1e20)
    assert 6 * size * tokens == pytest.approx(1e20)
    assert all(law.loss(size, tokens) <= law.loss(size * by, tokens / by) for by in (0.5, 0.9, 1.1, 2.0))
    assert law.best(1e20)[0] == pytest.approx(CHINCHILLA.best(1e20)[0], rel=0.1)


@pytest.mark.slow
def test_intervals_hold_the_truth_and_say_how_far_it_is_extrapolated() -> None:
    held = 0
    for seed in range(4):
        found = fit(points(noise=0.005, seed=seed), seed)
        held += found.ranges["alpha"].low <= 0.34 <= found.ranges["alpha"].high
    assert held >= 3
    near, far = found.advice(1e18), found.advice(1e24)
    assert near.loss.low < near.loss.value < near.loss.high
    assert (near.loss.high - near.loss.low) < (far.loss.high - far.loss.low)
    assert "a guess" in far.sentence
    assert "a guess" not in near.sentence
    assert "no run shows" not in near.sentence
    assert "10 times the largest run: no run shows that the law holds there" in found.advice(1.2e19).sentence
    assert found.flops_per_second == 1e12
    assert found.caution == ""
    assert "nats per token on its own runs: train more" in replace(found, error=0.2).caution


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (points()[:3], "3 runs, a law needs 6"),
        ([point for point in points() if point.parameters in (1e6, 1e7)], "2 different sizes of model"),
        ([point for point in points() if point.tokens == 2e7] * 2, "1 different numbers of tokens"),
    ],
)
def test_too_few_runs_are_refused_with_what_to_do(chosen: list[Point], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fit(chosen)
    assert "train more" in caught.value.hint


def logged(point: Point, **tags: str) -> None:
    """A finished run with these numbers."""
    client = tracking().connect()
    run = client.create_run(
        tracking().experiment_id(client), run_name=point.name, tags={"scored_on": "the text", **tags}
    )
    client.log_param(run.info.run_id, "init", tags.get("from", "scratch"))
    seconds = point.flops / point.flops_per_second
    values = {"train/flops": point.flops, "train/tokens": point.tokens, "train/active_seconds": seconds}
    for name, value in {**values, DECIDING: point.loss}.items():
        client.log_metric(run.info.run_id, name, value)
    client.set_terminated(run.info.run_id)


@pytest.mark.usefixtures("database")
def test_the_command_reads_the_runs_and_says_what_to_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything = points(noise=0.002)
    for point in everything:
        logged(point)
    logged(Point("other text", 1e7, 1e9, 1.0, 1e12), scored_on="another text")
    for name in ("fine-tuned", "fine-tuned too"):
        logged(Point(name, 1e7, 1e9, 1.0, 1e12), **{"from": "champion"})
    client = tracking().connect()
    client.set_terminated(client.create_run(tracking().experiment_id(client)).info.run_id)
    caplog.set_level("INFO")
    place = tmp_path / "law.png"
    answer = CliRunner().invoke(
        app, ["fit-scaling", "--json", "--flops", "1e19", "--hours", "2", "--picture", str(place)]
    )
    assert answer.exit_code == 0, answer.output
    assert "4 runs left out: " in caplog.text
    for reason in ("1 not finished and scored", "2 not from scratch", "1 not scored on the the text"):
        assert reason in caplog.text
    values = json.loads(answer.stdout)
    assert len(values["runs"]) == len(everything)
    assert values["law"]["alpha"] == pytest.approx(0.34, abs=0.03)
    first, second = values["advice"]
    assert first["parameters"]["value"] == pytest.approx(CHINCHILLA.best(1e19)[0], rel=0.3)
    assert second["flops"] == pytest.approx(2 * 3600 * 1e12)
    assert place.read_bytes().startswith(b"\x89PNG")
    some = CliRunner().invoke(app, ["fit-scaling", everything[0].name, everything[1].name])
    assert some.exit_code != 0
    assert "2 runs, a law needs 6" in str(some.exception)


def test_one_run_that_went_wrong_hardly_moves_it() -> None:
    broken = points(noise=0.002)
    worst = broken[7]
    broken[7] = Point(worst.name, worst.parameters, worst.tokens, worst.loss * 1.5, 1e12)
    assert fit(broken).law.alpha == pytest.approx(0.34, abs=0.05)
