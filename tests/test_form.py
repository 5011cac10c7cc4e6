"""The form of a retraining: what is left empty stays as the preset has it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flows.retrain import RetrainParameters
from gptpipe.config import PRESETS, PipelineConfig, Section, parse


def configured(**given: Any) -> PipelineConfig:
    filled: PipelineConfig = parse(
        PipelineConfig, RetrainParameters(**given).model_dump(mode="json", exclude_none=True)
    )
    return filled


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_left_empty_is_as_the_preset_says(preset: str) -> None:
    assert configured(preset=preset) == PipelineConfig(preset=preset)
    given: dict[str, Any] = {"preset": preset, "train": {"seed": 7}, "model": {"dropout": 0.25}}
    assert configured(**given) == PipelineConfig(**given)


def test_a_form_that_is_sent_with_every_default_it_shows_is_the_preset() -> None:
    """Prefect's UI sends what it shows."""
    shown: dict[str, Any] = {
        name: field["default"]
        for name, field in RetrainParameters.model_json_schema()["properties"].items()
        if field.get("default") is not None
    }
    assert shown.keys() == {"preset", "init", "force"}
    shown["preset"] = "gpt2-355m"
    assert configured(**shown) == PipelineConfig(preset="gpt2-355m")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_whole_configuration_goes_through_unchanged(preset: str) -> None:
    config = PipelineConfig(preset=preset)
    assert configured(**config.model_dump(mode="json")) == config


def test_it_has_every_field_with_its_bounds_description_and_place() -> None:
    def check(kind: type[Section], form: Any) -> None:
        assert form.model_fields.keys() == kind.model_fields.keys()
        properties = form.model_json_schema()["properties"]
        assert sorted(field["position"] for field in properties.values()) == list(range(len(properties)))
        for name, info in kind.model_fields.items():
            assert form.model_fields[name].description == info.description
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                inner = next(one for one in form.model_fields[name].annotation.__args__ if one is not type(None))
                check(info.annotation, inner)

    check(PipelineConfig, RetrainParameters)
    for wrong in ({"train": {"steps": 0}}, {"train": {"stepz": 5}}, {"preset": "huge"}, {"model": {"n_head": "many"}}):
        with pytest.raises(ValidationError):
            RetrainParameters(**wrong)
