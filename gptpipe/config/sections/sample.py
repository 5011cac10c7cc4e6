"""What is generated, and how tokens are drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from gptpipe.config.fields import Section, operational, result


class SampleConfig(Section):
    """What is generated to look at."""

    prompts: list[str] = result(
        ["Every effort moves you", "def main(", "import os\n\n\nclass ", "    def __init__(self"],
        "Texts to continue",
        min_length=1,
    )
    max_new_tokens: int = result(80, "Tokens generated per prompt", "tokens", ge=1, le=1 << 20)
    temperature: float = result(0.8, "Divides the logits; 0 takes the likeliest token", ge=0, le=100)
    top_k: int = result(50, "Draw from the k likeliest tokens; 0 is all", "tokens", ge=0)
    top_p: float = result(1.0, "Draw from the fewest tokens whose probability reaches this", gt=0, le=1)
    min_p: float = result(0.0, "Draw from tokens at least so likely beside the likeliest", ge=0, le=1)
    repetition_penalty: float = result(1.0, "Makes tokens that are there already less likely; 1 does not", gt=0, le=10)
    stop: list[str] = result([], "Texts before which a continuation ends")
    slide: Literal["one", "half"] = result(
        "one",
        "Past the context: drop one token at a time and compute all again, or drop half a context and go on from there",
    )
    precision: Literal["float32", "bfloat16"] = result("float32", "Type of the large matrices")
    batch_size: int = operational(16, "Prompts continued at once; the next begins where one ends", "prompts", ge=1)
    seed: int = result(1337, "Seed of the draws", ge=0, lt=1 << 63)

    @field_validator("stop")
    @classmethod
    def _stop_holds_no_empty_text(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text is everywhere")
        return value
