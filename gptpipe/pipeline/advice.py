"""What somebody who has trained many models would say of a configuration before it is run."""

from __future__ import annotations

import math

from gptpipe.config import PipelineConfig
from gptpipe.corpus.estimate import Amount
from gptpipe.evaluation.confidence import FEWEST, Comparison
from gptpipe.wording import counted

_EPOCHS = 4  # Muennighoff et al. 2023, "Scaling Data-Constrained Language Models": more gain little
_TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models"
_FAR = 4.0  # times more or less
_MUON = 2.0  # preset nano-modern's rate, found by trying, over AdamW's at its best: tests/benchmarks/RESULTS.md


def advice(
    config: PipelineConfig, amount: Amount, parameters: int, tokens: int, last: Comparison | None = None
) -> list[str]:
    """Sentences, each with what to do; none where nothing is unusual.

    Args:
        parameters: of the model, without embeddings. tokens: that the training will see.
        last: the newest comparison of this model's versions, which tells how sure one on as many documents is.
    """
    return [
        text
        for text in (
            _epochs(amount, tokens, config.train.replay if config.init == "champion" else None),
            _balance(parameters, tokens) if config.init == "scratch" else "",
            _validation(config, amount, last),
            _learning_rate(config, parameters),
        )
        if text
    ]


def _epochs(amount: Amount, tokens: int, replay: float | None) -> str:
    epochs = tokens / max(1, amount.train_tokens)
    if epochs <= _EPOCHS or replay is not None:
        return ""
    return (
        f"the text is seen {epochs:.1f} times: beyond {_EPOCHS} it gains little; give more text, or at most "
        f"{_EPOCHS * amount.train_tokens:,} tokens' worth of steps"
    )


def _balance(parameters: int, tokens: int) -> str:
    ratio = tokens / max(1, parameters)
    if _TOKENS_PER_PARAMETER / _FAR <= ratio <= _TOKENS_PER_PARAMETER * _FAR:
        return ""
    per = f"{ratio:.2g} tokens per parameter without embeddings"
    best = f"about {_TOKENS_PER_PARAMETER} spend FLOPs best"
    if ratio < _TOKENS_PER_PARAMETER:
        more = _TOKENS_PER_PARAMETER * parameters
        return f"{per} are few, {best}: for this model {_short(more)} tokens"
    larger = math.sqrt(parameters * tokens / _TOKENS_PER_PARAMETER)  # FLOPs are 6 N D
    return f"{per} are many, {best}: for these FLOPs {_short(larger)} such parameters"


def _validation(config: PipelineConfig, amount: Amount, last: Comparison | None) -> str:
    if config.evaluate.data or not config.promote.register_model:
        return ""
    held = amount.validation_documents
    if held < FEWEST:
        return f"{counted(held, 'document')} held out: with fewer than {FEWEST} no model replaces a champion"
    least = config.promote.min_improvement
    if last is None or last.interval is None or not least or last.unit != "token":
        return ""
    reach = (last.interval.high - last.interval.low) / 2 * math.sqrt(last.documents / held)
    if reach <= least:
        return ""
    needed = math.ceil(held * (reach / least) ** 2)
    return (
        f"with {held:,} held-out documents a difference is known to ±{reach:.4f} nats per token, as last time: "
        f"a gain of promote.min_improvement={least:g} needs about {needed:,} documents to be seen"
    )


def _learning_rate(config: PipelineConfig, parameters: int) -> str:
    usual = usual_learning_rate(parameters)
    if config.train.optimizer == "muon":
        usual *= _MUON
    ratio = config.train.learning_rate / usual
    if ratio > _FAR or (ratio < 1 / _FAR and config.init == "scratch"):
        kind = "high" if ratio > 1 else "low"
        return (
            f"a learning rate of {config.train.learning_rate:g} is {kind} for {_short(parameters)} parameters: "
            f"{usual:.1g} is usual"
        )
    return ""


def usual_learning_rate(parameters: int) -> float:
    """For AdamW, by size: 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, appendix D.6), at least 6e-5."""
    return max(6e-5, 0.003239 - 0.0001395 * math.log(max(1, parameters)))


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
