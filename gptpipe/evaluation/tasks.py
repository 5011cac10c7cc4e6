"""Tasks with a right answer, from JSON lines in the public formats of their data sets.

`lambada` (Paperno et al. 2016; `{"text"}`): is the text's last word what the model would write? `hellaswag` (Zellers et
al. 2019; `{"activity_label", "ctx_a", "ctx_b", "endings", "label"}`): which of the endings is the likeliest? Both as
lm-evaluation-harness asks and counts them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.evaluation.continuations import Likelihood, encode_pair, likelihoods
from gptpipe.model.gpt import GPT
from gptpipe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A context, what may follow it, and the number of the right one."""

    context: str
    choices: list[str]
    right: int = 0


@dataclass(frozen=True)
class TaskScore:
    """What a model scored on a task.

    Attributes:
        accuracy: share of questions that it gets right; standard_error: of it.
        accuracy_per_character: where there are choices, by log-probability a character, so that long ones are not at
            a disadvantage (`acc_norm` in lm-evaluation-harness).
        perplexity: of the last word, where there is one to predict.
    """

    task: str
    url: str
    sha256: str
    questions: int
    accuracy: float
    standard_error: float
    accuracy_per_character: float | None = None
    perplexity: float | None = None

    @property
    def numbers(self) -> dict[str, Any]:
        """What a person compares."""
        numbers: dict[str, Any] = {f"{self.task}, right of {self.questions:,}": self.accuracy}
        numbers[f"{self.task}, standard error"] = self.standard_error
        if self.accuracy_per_character is not None:
            numbers[f"{self.task}, right a character"] = self.accuracy_per_character
        if self.perplexity is not None:
            numbers[f"{self.task}, perplexity of the last word"] = self.perplexity
        return numbers


def _lambada(document: dict[str, Any]) -> Question:
    before, _, last = document["text"].rpartition(" ")
    return Question(before, [f" {last}"])


def _hellaswag(document: dict[str, Any]) -> Question:
    context = f"{document['activity_label']}: {document['ctx_a']} {document['ctx_b'].capitalize()}"
    if not isinstance(document["endings"], list):
        raise ValueError("endings are no list")
    endings = [f" {_tidied(ending)}" for ending in document["endings"]]
    right = int(document["label"])
    if not 0 <= right < len(endings):
        raise ValueError(f"label {right} of {len(endings)} endings")
    return Question(_tidied(context), endings, right)


def _tidied(text: str) -> str:
    """Without what WikiHow's pages leave in the texts."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


_TASKS: dict[str, Callable[[dict[str, Any]], Question]] = {"lambada": _lambada, "hellaswag": _hellaswag}
TASK_NAMES = tuple(_TASKS)


def task_digest(task: str) -> str:
    """SHA-256 of a task's file."""
    return hashlib.sha256(_read(_split(task)[1])).hexdigest()


def read_questions(task: str) -> list[Question]:
    """The questions of a task's file.

    Raises:
        UserError: no such task, or a line that is not of its format.
    """
    name, url = _split(task)
    lines = enumerate(_read(url).splitlines(), 1)
    questions = [_question(name, line, url, number) for number, line in lines if line.strip()]
    if not questions:
        raise UserError("no question in it", where=url, hint="give JSON lines in the data set's own format")
    return questions


def score_task(task: str, model: GPT, tokenizer: Tokenizer, *, batch_tokens: int, precision: str) -> TaskScore:
    """Ask a model every question.

    Args:
        task: NAME:URL, with a name of `TASK_NAMES`.
        batch_tokens: that the model takes at once.

    Raises:
        UserError: no such task, or a line that is not of its format.
    """
    name, url = _split(task)
    questions = read_questions(task)
    pairs = [encode_pair(tokenizer, q.context, choice) for q in questions for choice in q.choices]
    scores = iter(likelihoods(model, pairs, batch_tokens=batch_tokens, precision=precision))
    answers = [[next(scores) for _ in q.choices] for q in questions]
    made = partial(TaskScore, name, url, task_digest(task), len(questions))
    if name == "lambada":
        right = [each.greedy for [each] in answers]
        mean = sum(each.logprob for [each] in answers) / len(answers)
        return made(*_share(right), perplexity=math.exp(min(-mean, 700.0)))
    right = [_best(q, a, per_character=False) for q, a in zip(questions, answers, strict=True)]
    normalised = [_best(q, a, per_character=True) for q, a in zip(questions, answers, strict=True)]
    return made(*_share(right), accuracy_per_character=_share(normalised)[0])


def _best(question: Question, answers: list[Likelihood], *, per_character: bool) -> bool:
    # the space before is no part; an ending may be empty
    lengths = [max(1, len(choice) - 1) if per_character else 1 for choice in question.choices]
    values = [answer.logprob / length for answer, length in zip(answers, lengths, strict=True)]
    return values.index(max(values)) == question.right


def _share(right: list[bool]) -> tuple[float, float]:
    """The share and its standard error."""
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / max(1, len(right) - 1))


def _split(task: str) -> tuple[str, str]:
    name, _, url = task.partition(":")
    if name not in _TASKS or not url:
        raise UserError(
            f"{task!r} is no task", where="evaluate.tasks", hint=f"give {' or '.join(_TASKS)}, a colon and a file"
        )
    return name, storage.normalize(url)


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("no such file", where=url, hint="give a file of JSON lines") from None


def _question(name: str, line: bytes, url: str, number: int) -> Question:
    try:
        return _TASKS[name](json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"line {number} is not of {name}: {reason}", where=url, hint="give JSON lines in the data set's own format"
        ) from None
