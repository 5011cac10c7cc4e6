"""How far new text may differ from the text that the champion was trained on."""

from __future__ import annotations

from gptpipe.config.fields import Section, operational


class DriftConfig(Section):
    """How far new text may differ from the champion's, where a training goes on from it (`init=champion`)."""

    max_shrink: float = operational(
        0.5, "Most of the earlier text that may be missing: with less text nothing is trained", "fraction", ge=0, le=1
    )
    max_length_factor: float = operational(
        8.0, "How many times longer or shorter new documents may be, in the mean of their tokens", ge=1
    )
    max_script_change: float = operational(
        0.2, "Most letters of the new text that may be of another script, as Cyrillic for Latin", "fraction", ge=0, le=1
    )
    max_divergence: float = operational(
        0.2,
        "Most that token frequencies of new text may differ: Jensen-Shannon divergence beyond that of chance; "
        "0.69 is two texts without a common token",
        "nats",
        ge=0,
        le=0.7,
    )
    max_worsening: float = operational(
        0.1,
        "Most that the champion may surely cost more on new text than on old, where score-champion looks; with more it "
        "has drifted",
        "nats per token",
        ge=0,
        le=100,
    )
