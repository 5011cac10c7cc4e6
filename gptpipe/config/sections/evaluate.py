"""What the model is scored on, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from gptpipe.config.fields import Section, operational, result, without_secret


class EvaluateConfig(Section):
    """What a model is scored on."""

    data: str | None = result(
        None, "A fixed dataset to score on, so that last month's numbers still compare; by default the run's own"
    )
    split: Literal["validation", "train"] = result("validation", "Split of the dataset that is scored")
    max_tokens: int = result(
        0, "Tokens scored, roughly: whole windows, spread evenly over the split; 0 is all", "tokens", ge=0
    )
    context_length: int = result(0, "Tokens per window; 0 is the model's context", "tokens", ge=0)
    stride: int = result(
        0,
        "Tokens from one window to the next: less than a window, and every token is predicted with at least the rest "
        "of it before it; 0 is a whole window, so that none overlap",
        "tokens",
        ge=0,
    )
    documents: Literal["joined", "apart"] = result(
        "joined",
        "Joined to one stream, as in training, or each apart after <|endoftext|>, as lm-evaluation-harness does",
    )
    max_overlap: float = operational(
        0.1,
        "Most of the text of `data` that may stand in the training text, whole documents word for word: with more "
        "nothing is trained, with any a warning says so; 1 refuses nothing",
        "fraction",
        ge=0,
        le=1,
    )
    tasks: list[str] = result([], "Tasks with a right answer, lambada:FILE or hellaswag:FILE, JSON lines")
    precision: Literal["float32", "bfloat16"] = result("float32", "Type of the large matrices")
    device: Literal["auto", "cpu", "cuda"] = operational(
        "auto", "Where it is computed; auto takes a GPU if there is one"
    )
    nproc: int = operational(1, "Processes, a GPU each where there are some", "ranks", ge=1, le=64)
    batch_size: int = operational(
        0, "Windows scored at once; 0 is 8, or fewer where these have more than 8,192 tokens", "windows", ge=0
    )

    @field_validator("data", "tasks")
    @classmethod
    def _holds_no_secret(cls, value: str | list[str] | None) -> str | list[str] | None:
        for url in [value] if isinstance(value, str) else value or []:
            without_secret(url)
        return value

    @model_validator(mode="after")
    def _windows_leave_nothing_out(self) -> EvaluateConfig:
        if self.context_length and self.stride > self.context_length:
            raise ValueError(f"a stride of {self.stride} leaves tokens out between windows of {self.context_length}")
        return self
