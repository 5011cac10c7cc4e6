"""What happens to the finished model."""

from __future__ import annotations

import re

from pydantic import field_validator

from gptpipe.config.fields import Section, operational


class PromoteConfig(Section):
    """What happens to the finished model."""

    register_model: bool = operational(True, "Register the model as a new version in MLflow")
    model_name: str = operational(
        "gptpipe", "Name of the registered model; without / and :", min_length=1, max_length=200
    )
    alias: str = operational(
        "champion",
        "Alias that moves to a better model; challenger is the newest that did not, previous the one before",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
    )

    min_improvement: float = operational(
        0.0,
        "Least gain over the champion: the whole interval of the difference must show more",
        "nats per token",
        ge=0,
        le=100,
    )
    max_regression: float = operational(
        0.05,
        "Most that a single corpus may get worse: where it surely does by more, the champion stays",
        "nats per token",
        ge=0,
        le=100,
    )

    max_degenerate: float = operational(
        0.5,
        "Most of the samples that may be degenerate, blank or the same words over and over; 1 allows all",
        "fraction",
        ge=0,
        le=1,
    )
    max_copied: int = operational(
        50,
        "Most tokens of the training text that a sample may give back word for word: with more the champion stays; "
        "0 does not look",
        "tokens",
        ge=0,
        le=1 << 20,
    )

    approval_hours: float = operational(
        0.0,
        "How long a person has to agree before a better model becomes champion; 0 asks nobody. The flow run is paused "
        "with a form; after that time the champion stays, and `gptpipe approve` may still agree",
        "hours",
        ge=0,
        le=24 * 30,
    )

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
        if value in ("challenger", "previous"):
            raise ValueError(f"{value!r} is what another version is called: choose another")
        return value
