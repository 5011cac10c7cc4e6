"""The evaluation's text beside the training text, looked at before anything is trained."""

from __future__ import annotations

import logging

from pydantic import TypeAdapter

from gptpipe import storage
from gptpipe.config import EvaluateConfig, digest
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.dataset.overlap import Overlap, overlap
from gptpipe.errors import UserError

log = logging.getLogger(__name__)
STAGE_VERSION = 1
_OVERLAP = TypeAdapter(Overlap)


def check_overlap(config: EvaluateConfig, dataset: str, out: str) -> Overlap | None:
    """Refuse an evaluation set that is trained on, and warn of one of which a little is.

    A dataset's own validation split has no copy of a text that is trained on: copies are all on one side.

    Args:
        dataset: URL of what is trained on. out: folder or URL where the answer for these two datasets is kept.

    Returns:
        What was measured; None where no `evaluate.data` is set.

    Raises:
        UserError: more than `evaluate.max_overlap` of the evaluation's text stands in the training text, or the
            evaluation's dataset has another tokenizer.
    """
    if not config.data:
        return None
    training, evaluation = open_dataset(dataset), open_dataset(config.data)
    if evaluation.tokenizer["sha256"] != training.tokenizer["sha256"]:
        raise UserError(
            f"made with tokenizer {evaluation.tokenizer['name']}, the training text with {training.tokenizer['name']}",
            where=f"evaluate.data={config.data}",
            hint="tokenize it again with the same one",
        )
    there = _measured_once(evaluation, config.split, training, out)
    if there.share > config.max_overlap:
        raise UserError(
            f"{there.sentence}; no more than {config.max_overlap:.2%} may",
            where=f"dataset {evaluation.id}",
            hint="choose another evaluate.data, or raise evaluate.max_overlap",
        )
    if there.documents:
        log.warning("evaluation: %s", there.sentence)
    return there


def _measured_once(evaluation: Dataset, split: str, training: Dataset, out: str) -> Overlap:
    """Both datasets have names by what they hold: what was measured once stays true."""
    name = digest({"stage": STAGE_VERSION, "evaluation": evaluation.id, "split": split, "training": training.id})
    place = storage.join(storage.normalize(out), f"overlap-{name}.json")
    kept = storage.read_result(place, _OVERLAP)
    if kept is None:
        kept = overlap(evaluation, split, training)
        storage.write_result(place, _OVERLAP.dump_python(kept, mode="json"))
    return kept
