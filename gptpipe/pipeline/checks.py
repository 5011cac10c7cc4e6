"""What the later stages of a pipeline need, asked for before the first one starts."""

from __future__ import annotations

from functools import lru_cache

from gptpipe.config import EvaluateConfig, PipelineConfig, SampleConfig
from gptpipe.corpus.sources import list_sources
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import UserError
from gptpipe.evaluation.tasks import read_questions
from gptpipe.export.folder import check_place
from gptpipe.launch.training import check_vocab_size
from gptpipe.storage import check_writable, normalize
from gptpipe.tokenizer import get_tokenizer
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.registry import check_tracking, starting_weights
from gptpipe.weights.find import read_weights
from gptpipe.wording import is_unicode


def check_pipeline(config: PipelineConfig, store: str, tracking: Tracking) -> None:
    """Find out, in seconds, what would end the pipeline after hours. A process looks once at the same configuration.

    Args:
        store: folder or URL for everything that is made.

    Raises:
        UserError: a text, a place, weights, a dataset or a setting with which a later stage cannot work.
    """
    _check(config.model_dump_json(), store, tracking)


@lru_cache(maxsize=1)
def _check(values: str, store: str, tracking: Tracking) -> None:
    config = PipelineConfig.model_validate_json(values)
    list_sources(config.data, quiet=True)
    check_writable(normalize(store))
    check_evaluation(config.evaluate, config)
    check_prompts(config.sample)
    tokenizer = get_tokenizer(config.data.tokenizer)
    if config.init == "scratch":
        check_vocab_size(config.model, tokenizer.vocab_size, tokenizer.name)
    if config.export:
        check_place(config.export, replace=True)
    check_tracking(config, tracking, store)
    weights = starting_weights(config, tracking)
    if weights and not weights.startswith("hf:"):
        read_weights(weights)
    elif config.init == "champion":  # which is not there yet: the model begins from scratch
        check_vocab_size(config.model, tokenizer.vocab_size, tokenizer.name)


def check_evaluation(config: EvaluateConfig, pipeline: PipelineConfig) -> None:
    """Raises UserError: there will be nothing to score on, or no window of that length."""
    for task in config.tasks:
        read_questions(task)
    if config.data:
        if not open_dataset(config.data).total("tokens", config.split):
            raise UserError(
                f"no {config.split} split in it", where=f"evaluate.data={config.data}", hint="choose another dataset"
            )
    elif config.split == "validation" and not pipeline.data.validation:
        raise UserError(
            "nothing is kept for validation, and there is nothing to evaluate on",
            where="data.validation=0",
            hint="keep some, or set evaluate.data to another dataset, or evaluate.split=train",
        )
    context = pipeline.model.context_length
    if pipeline.init == "scratch" and config.context_length > context:
        raise UserError(
            f"a window of {config.context_length} tokens, the model's context is {context}",
            where="evaluate.context_length",
            hint="choose one between 1 and the model's context",
        )


def check_prompts(config: SampleConfig) -> None:
    """Raises UserError: a text that no tokenizer reads."""
    for text in (*config.prompts, *config.stop):
        if not is_unicode(text):
            raise UserError("half of a character", where=f"the text {text!r}", hint="give text that is Unicode")
