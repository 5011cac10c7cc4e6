"""What is searched: ranges and lists as a person writes them, what is refused, and the trainings that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gptpipe.config import PipelineConfig, SweepConfig, load_sweep
from gptpipe.config.names import OPERATIONAL
from gptpipe.errors import UserError
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.space import (
    Dimension,
    child_config,
    chosen_values,
    combination,
    combinations,
    read_space,
    shuffled,
)

BASE = PipelineConfig()


def one(line: str) -> Dimension:
    (dimension,) = read_space([line], BASE)
    return dimension


@pytest.mark.parametrize(
    ("line", "low", "high", "log", "whole"),
    [
        ("train.learning_rate=1e-4..1e-2", 1e-4, 1e-2, True, False),
        ("train.learning_rate=1e-3..2e-3", 1e-3, 2e-3, False, False),
        ("train.learning_rate=1e-3..2e-3:log", 1e-3, 2e-3, True, False),
        ("train.weight_decay=0.01..1:linear", 0.01, 1, False, False),
        ("model.dropout=0..0.3", 0, 0.3, False, False),
        ("train.batch_size=2..64", 2, 64, True, True),
        ("train.warmup_steps=0..20", 0, 20, False, True),
        ("train.mixture.code=0.1..0.9", 0.1, 0.9, False, False),
    ],
)
def test_a_range_has_two_ends_and_a_scale(line: str, low: float, high: float, log: bool, whole: bool) -> None:
    found = one(line)
    assert (found.low, found.high, found.log, found.whole, found.values) == (low, high, log, whole, ())


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("model.n_embd=8,16, 32", (8, 16, 32)),
        ("train.learning_rate=1e-3,3e-3", (1e-3, 3e-3)),
        ("train.optimizer=adamw,muon", ("adamw", "muon")),
        ("train.spike_action=off,warn", ("off", "warn")),
        ("train.decay_vectors=true,false", (True, False)),
        ("train.seed=7", (7,)),
    ],
)
def test_a_list_has_values_of_the_key_s_kind(line: str, values: tuple[Any, ...]) -> None:
    found = one(line).values
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    ("line", "what", "what_to_do"),
    [
        ("train.learning_rat=1,2", "unknown key", "did you mean train.learning_rate?"),
        ("model=1,2", "unknown key", "model.n_embd"),
        ("train.nproc=1,2", "does not change what a training comes to", "those without *"),
        ("data.validation=0.1,0.2", "the same for all trainings", "keys of model and train"),
        ("train.device=cpu,cuda", "the same for all trainings", "keys of model and train"),
        ("sample.top_k=1,2", "does not change what a training comes to", "keys of model and train"),
        ("evaluate.max_tokens=1,2", "does not change what a training comes to", "keys of model and train"),
        ("train.optimizer=adam", "'adamw' or 'muon'", "README"),
        ("train.batch_size=2.5,3", "valid integer", "README"),
        ("train.learning_rate=1e-3..20", "less than 10", "README"),
        ("train.learning_rate=1e-2..1e-4", "upwards", "smaller end first"),
        ("model.dropout=0..0.1:log", "log scale", ":linear"),
        ("train.optimizer=adamw..muon", "only numbers", "list"),
        ("train.seed=1,1", "twice", "once"),
        ("train.seed=1,,2", "empty", "for example"),
        ("train.seed", "not KEY=VALUES", "for example"),
        ("=1", "not KEY=VALUES", "for example"),
    ],
)
def test_what_cannot_be_searched_is_said_in_a_line(line: str, what: str, what_to_do: str) -> None:
    with pytest.raises(UserError) as refused:
        one(line)
    assert what in refused.value.message
    assert what_to_do in refused.value.hint
    assert refused.value.where.startswith("search")
    assert "\n" not in str(refused.value)


def test_no_operational_key_can_be_searched() -> None:
    for key in sorted(OPERATIONAL):
        with pytest.raises(UserError, match="does not change what a training comes to"):
            one(f"{key}=1,2")


def test_a_key_is_searched_once_and_a_model_that_starts_from_weights_keeps_their_shape() -> None:
    with pytest.raises(UserError, match="searched twice"):
        read_space(["train.seed=1,2", "train.seed=3"], BASE)
    tuned = PipelineConfig(init="champion")
    with pytest.raises(UserError, match="shape of the weights"):
        read_space(["model.n_layer=1,2"], tuned)
    assert read_space(["model.dropout=0,0.1"], tuned)[0].values == (0.0, 0.1)


@pytest.mark.parametrize(
    ("search", "more", "what"),
    [
        (["train.learning_rate=1e-4..1e-2"], {"method": "grid"}, "a grid has no end"),
        (["train.steps=100,200"], {"method": "asha"}, "the same length"),
        ([], {}, "nothing is searched"),
    ],
)
def test_a_method_that_cannot_search_that_says_so(search: list[str], more: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        Plan.of(BASE, SweepConfig(search=search, **more))


def test_trainings_on_several_machines_are_refused() -> None:
    base = PipelineConfig.model_validate({"train": {"nodes": 2}})
    with pytest.raises(UserError, match="on one machine"):
        Plan.of(base, SweepConfig(search=["train.seed=1,2"]))


def test_every_combination_comes_once_in_a_drawn_order_too() -> None:
    space = read_space(["model.n_embd=8,16,32", "train.seed=1,2", "train.decay_vectors=true,false"], BASE)
    size = combinations(space)
    assert size == 12
    grid = [combination(space, place) for place in range(size)]
    assert grid[0] == {"model.n_embd": 8, "train.decay_vectors": True, "train.seed": 1}
    assert grid[1] == {**grid[0], "train.seed": 2}
    assert len({str(each) for each in grid}) == size
    order = [shuffled(place, size, 5) for place in range(size)]
    assert sorted(order) == list(range(size))
    assert order != list(range(size))
    assert order == [shuffled(place, size, 5) for place in range(size)]
    assert combinations(read_space(["model.dropout=0..0.1"], BASE)) is None


def test_how_many_trainings_there_are() -> None:
    lists, ranges = ["model.n_embd=8,16,32", "train.seed=1,2"], ["model.dropout=0..0.1"]
    for method, search, trials, there in (
        ("grid", lists, 0, 6),
        ("grid", lists, 4, 4),
        ("random", lists, 100, 6),
        ("asha", lists, 0, 6),
        ("asha", ranges, 0, 20),
        ("tpe", ranges, 7, 7),
    ):
        assert Plan.of(BASE, SweepConfig(search=search, method=method, trials=trials)).trials == there


def test_the_first_rung_leaves_the_last_step_to_the_training() -> None:
    base = PipelineConfig.model_validate({"train": {"steps": 100, "warmup_steps": 1}})
    plan = Plan.of(base, SweepConfig(search=["train.seed=1,2"], method="asha"))
    assert plan.first_rung == 13
    assert plan.first_rung * 2**3 >= 100
    assert Plan.of(base, SweepConfig(search=["train.seed=1,2"], method="grid")).first_rung == 0


def test_a_name_is_made_of_what_decides_and_of_nothing_else() -> None:
    def name(base: PipelineConfig = BASE, dataset: str = "d", **options: Any) -> str:
        return Plan.of(base, SweepConfig(search=["train.learning_rate=1e-3,1e-2"], **options)).on(dataset).name

    usual = name()
    other_base = PipelineConfig.model_validate({"train": {"weight_decay": 0.2}})
    searched = PipelineConfig.model_validate({"train": {"learning_rate": 0.5, "checkpoint_every": 7}})
    assert name(searched) == name(parallel=3) == name(trials=2) == usual
    others = {name(other_base), name(dataset="e"), name(method="grid"), name(seed=1), name(rungs=1), usual}
    assert len(others) == 6
    written_otherwise = SweepConfig(search=["train.learning_rate=0.001,0.01"])
    assert Plan.of(BASE, written_otherwise).on("d").name == usual


def test_a_training_has_the_values_and_its_file_says_them() -> None:
    base = PipelineConfig.model_validate({"train": {"steps": 300}})
    child = child_config(base, {"train.steps": 100, "model.n_embd": 64, "train.mixture.code": 0.5})
    assert (child.train.steps, child.model.n_embd, child.train.mixture) == (100, 64, {"code": 0.5})
    assert child.train.warmup_steps == PipelineConfig.model_validate({"train": {"steps": 100}}).train.warmup_steps
    chosen = PipelineConfig.model_validate({"train": {"steps": 100, "warmup_steps": 50}})  # the preset's own number
    for config in (child, base, chosen, child_config(chosen, {"train.steps": 200})):
        values = yaml.safe_load(yaml.safe_dump(chosen_values(config)))
        assert PipelineConfig.model_validate(values) == config
    with pytest.raises(UserError, match="not a multiple of n_head"):
        child_config(base, {"model.n_embd": 63})


def test_a_file_for_a_sweep_is_a_pipeline_s_with_a_section_more(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "train: {steps: 200}\n"
        "sweep:\n"
        "  method: random\n"
        "  search:\n"
        "    train.learning_rate: 1e-4..1e-2\n"
        "    model.n_embd: [64, 128]\n"
        "    train.decay_vectors: [true, false]\n"
    )
    base, sweep = load_sweep(file=file, overrides=["sweep.trials=7"])
    assert base == PipelineConfig.model_validate({"train": {"steps": 200}})
    assert (sweep.method, sweep.trials) == ("random", 7)
    lines = ["train.learning_rate=1e-4..1e-2", "model.n_embd=64,128", "train.decay_vectors=true,false"]
    assert sorted(sweep.search) == sorted(lines)
    assert Plan.of(base, sweep).space == Plan.of(base, SweepConfig(search=lines)).space
    with pytest.raises(UserError, match=r"did you mean sweep\.trials"):
        load_sweep(file=file, overrides=["sweep.trial=7"])


@pytest.mark.parametrize(
    ("warmup", "search", "first"),
    [(4, "train.seed=1,2", True), (2, "train.seed=1,2", False), (2, "train.warmup_steps=1,9", True)],
)
def test_a_judgement_before_the_warm_up_ends_is_cautioned_against(warmup: int, search: str, first: bool) -> None:
    base = PipelineConfig.model_validate({"train": {"steps": 24, "warmup_steps": warmup}})
    plan = Plan.of(base, SweepConfig(method="asha", search=[search], reduction=3, rungs=2))
    assert plan.first_rung == 3
    ends = 9 if "warmup" in search else 4
    words = f"asha judges first at step 3, before the warm-up of {ends} steps ends: raise train.steps"
    assert plan.caution.startswith(words) if first else plan.caution == ""
    assert Plan.of(base, SweepConfig(method="random", search=[search])).caution == ""
