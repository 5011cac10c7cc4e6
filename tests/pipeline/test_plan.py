"""A plan's numbers against the run that follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptpipe.config import Corpus, DataConfig, PipelineConfig, load_config
from gptpipe.config.settings import settings
from gptpipe.corpus.build import tokenize
from gptpipe.launch.job import Outcome
from gptpipe.pipeline import speed
from gptpipe.pipeline.plan import plan
from gptpipe.pipeline.speed import Speed, last_speed, measure_speed, speed_key, speed_tags
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.training import train_and_track

TINY = ["model.n_layer=1", "model.n_embd=32", "model.n_head=2", "model.context_length=32", "train.steps=12"]
TINY += ["train.batch_size=4", "train.validate_every=0", "train.checkpoint_every=5", "train.log_every=1"]
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"text {number} of many, all of them short\n" * 9)
    found = load_config(overrides=TINY)
    return found.model_copy(update={"data": DataConfig(corpus=[Corpus(url=str(folder))])})


def store() -> str:
    return settings().storage_url


def test_the_plan_before_and_after_a_run(config: PipelineConfig) -> None:
    tracking = Tracking.of(settings())
    before = plan(config, store(), tracking, measure=False)
    assert (before.steps, before.tokens, before.is_estimate, before.skipped) == (12, 12 * 4 * 32, True, [])
    # embedding, attention, the gated MLP (8/3 of the width, rounded up to 64), norms
    assert before.parameters == 50257 * 32 + 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32 + 2 * 16 + 32
    assert before.parameters - before.parameters_without_embeddings == 50257 * 32
    assert (before.seconds, before.tokens_per_second) == (None, None)
    assert "not known" in before.rows["time"]
    assert before.flops == pytest.approx(6 * before.tokens * before.parameters, rel=0.01)

    dataset = tokenize(config.data, f"{store()}/datasets").dataset
    planned = plan(config, store(), tracking, measure=False)
    assert not planned.is_estimate
    assert planned.train_tokens == pytest.approx(before.train_tokens, rel=0.15)
    assert [line.partition(":")[0] for line in planned.skipped] == ["tokenize"]

    out = f"{store()}/trainings"
    result, _ = train_and_track(config, tracking, data=dataset, out=out, tags=speed_tags(config))
    after = plan(config, store(), tracking, measure=False)
    assert [line.partition(":")[0] for line in after.skipped] == ["tokenize", "train"]
    assert "is finished" in after.skipped[1]
    assert after.speed.startswith("the last run of this shape on ")
    assert after.seconds is not None
    assert after.memory_in_all is not None
    assert after.memory_in_all > after.memory_at_once
    size = sum(file.stat().st_size for file in Path(result.checkpoint).iterdir())
    assert after.checkpoint_bytes == pytest.approx(size, rel=0.02)
    # half of it is not finished
    Path(result.training, "outcome.json").write_text(Outcome(status="preempted").model_dump_json())
    assert "goes on from step 12" in plan(config, store(), tracking, measure=False).skipped[1]
    assert "| text |" in after.markdown
    assert after.as_dict()["parameters"] == after.parameters


def test_another_shape_has_another_speed(config: PipelineConfig) -> None:
    other = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 1e-5, "seed": 3})})
    assert speed_key(other) == speed_key(config)  # neither makes a step slower
    for section, change in (("model", {"n_layer": 2}), ("train", {"batch_size": 8})):
        changed = getattr(config, section).model_copy(update=change)
        assert speed_key(config.model_copy(update={section: changed})) != speed_key(config)


def test_a_measurement_is_of_real_steps_and_leaves_nothing(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.3)
    measured = measure_speed(config)
    assert measured.tokens_per_second > 0
    assert measured.memory > 50e6
    assert measured.start_seconds > 0.1
    assert not list((settings().home_path / "jobs").glob("*"))
    assert last_speed(config, Tracking.of(settings())) is None


def test_validations_are_counted_where_the_speed_is_without_them(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptpipe.pipeline.plan.measure_speed", lambda _: Speed(100.0, 1e9, "measured", False, 2.0))
    train = config.train.model_copy(update={"validate_every": 3, "validate_tokens": 32})
    planned = plan(config.model_copy(update={"train": train}), store(), Tracking.of(settings()), measure=True)
    assert planned.seconds == pytest.approx(2 + 12 * 128 / 100 + 4 * 32 / 300)
