"""The form of a retraining: what is left empty stays as the preset has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.retrain import RetrainParameters
from gptpipe.config import PRESETS, PipelineConfig, Section, load_config, parse, preset_values
from gptpipe.config.form import QUICK, filled, values_of
from gptpipe.config.text import read_yaml
from gptpipe.errors import UserError


def configured(**given: Any) -> PipelineConfig:
    filled: PipelineConfig = parse(PipelineConfig, values_of(RetrainParameters(**given)))
    return filled


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_left_empty_is_as_the_preset_says(preset: str) -> None:
    assert configured(preset=preset) == PipelineConfig(preset=preset)
    given: dict[str, Any] = {"preset": preset, "train": {"seed": 7}, "model": {"n_layer": 5}}
    assert configured(**given) == PipelineConfig(**given)


def test_a_form_that_is_sent_with_every_default_it_shows_is_the_preset() -> None:
    """Prefect's UI sends what it shows."""
    shown: dict[str, Any] = {
        name: field["default"]
        for name, field in RetrainParameters.model_json_schema()["properties"].items()
        if field.get("default") is not None
    }
    assert shown.keys() == {"preset", "init", "force"}
    assert list(RetrainParameters.model_json_schema()["properties"])[:8] == [
        *("preset", "corpus", "steps", "batch_size", "learning_rate", "init", "nodes", "force")
    ]
    shown["preset"] = "gpt2-355m"
    assert configured(**shown) == PipelineConfig(preset="gpt2-355m")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_whole_configuration_goes_through_unchanged(preset: str) -> None:
    config = PipelineConfig(preset=preset)
    assert configured(**config.model_dump(mode="json")) == config


def test_it_has_every_field_with_its_bounds_description_and_place() -> None:
    def check(kind: type[Section], form: Any) -> None:
        extra = {key.rpartition(".")[2] for key in QUICK} if kind is PipelineConfig else set()
        assert form.model_fields.keys() == kind.model_fields.keys() | extra
        properties = form.model_json_schema()["properties"]
        assert sorted(field["position"] for field in properties.values()) == list(range(len(properties)))
        for name, info in kind.model_fields.items():
            assert str(form.model_fields[name].description).startswith(str(info.description))
            assert properties[name]["title"]  # or the UI calls it "Field"
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                inner = next(one for one in form.model_fields[name].annotation.__args__ if one is not type(None))
                check(info.annotation, inner)

    check(PipelineConfig, RetrainParameters)
    for wrong in ({"train": {"steps": 0}}, {"train": {"stepz": 5}}, {"preset": "huge"}, {"model": {"n_head": "many"}}):
        with pytest.raises(ValidationError):
            RetrainParameters(**wrong)


def test_what_stands_at_the_top_is_what_its_section_means() -> None:
    top = configured(
        corpus=["stdlib:", "notes=/a/b", "s3://bucket/x=y"], steps=30, batch_size=4, learning_rate=0.01, nodes=2
    )
    sections = configured(
        data={"corpus": [{"url": "stdlib:"}, {"name": "notes", "url": "/a/b"}, {"url": "s3://bucket/x=y"}]},
        train={"steps": 30, "batch_size": 4, "learning_rate": 0.01, "nodes": 2},
    )
    assert top == sections
    with pytest.raises(UserError, match=r"train\.steps: given at the top and in its section"):
        configured(steps=30, train={"steps": 40})


@pytest.mark.parametrize("name", PRESETS)
def test_the_form_says_what_an_empty_field_comes_to(name: str) -> None:
    properties = RetrainParameters.model_json_schema()["properties"]
    train = preset_values(name)["train"]
    assert f"{train['steps']:,} steps" in properties["preset"]["description"]
    assert name in properties["preset"]["description"]
    assert f"{train['steps']:,} ({name}" in properties["steps"]["description"].replace("(book-124m, ", "(") or (
        f"{train['steps']:,}" in properties["steps"]["description"]
    )


def test_a_file_of_settings_fills_the_form_as_a_person_would(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 30, seed: 3}\ndata: {corpus: [{name: x, url: /a}]}\n")
    values = read_yaml(tmp_path / "a.yaml", PipelineConfig)
    shown = filled(values)
    assert shown == {"train": {"seed": 3}, "steps": 30, "corpus": ["x=/a"]}
    assert configured(**shown) == load_config(file=tmp_path / "a.yaml")
