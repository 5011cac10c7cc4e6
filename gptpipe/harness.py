"""EleutherAI's lm-evaluation-harness on our weights: `python -m gptpipe.harness --model gptpipe …`, or a model object.

    python -m gptpipe.harness --model gptpipe --model_args weights=WEIGHTS --tasks hellaswag

takes every option of `lm_eval`. Needs `pip install 'gptpipe[harness]'`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from gptpipe.config import SampleConfig
from gptpipe.config.settings import prepare_environment
from gptpipe.evaluation.continuations import likelihoods
from gptpipe.evaluation.score import tokens_at_once
from gptpipe.evaluation.windows import apart_windows
from gptpipe.generation.generate import generate
from gptpipe.model.precision import pick_device, to_precision
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.find import read_weights

_NEW_TOKENS = 256  # what the harness takes where a task does not say


@register_model("gptpipe")
class GptpipeLM(TemplateLM):  # type: ignore[misc]
    """Weights as a model of the harness.

    Args:
        weights: any WEIGHTS. precision: float32 or bfloat16. device: auto, cpu or cuda.
        batch_size: windows or prompts that the model takes at once; auto is 8, fewer where windows are long.
    """

    def __init__(
        self,
        weights: str,
        precision: str = "float32",
        device: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        read = read_weights(weights)
        self.model = to_precision(read.build(), precision).to(pick_device(device or "auto")).eval()
        self.precision, self.encoding = precision, get_tokenizer(read.tokenizer)
        windows = 0 if batch_size == "auto" else int(batch_size)
        self.batch_size = windows or 8
        self.batch_tokens = tokens_at_once(windows, self.model.config.context_length)

    @property
    def eot_token_id(self) -> int:
        return self.encoding.end_of_text

    @property
    def tokenizer_name(self) -> str:
        return self.encoding.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.encoding.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return [(each.logprob, each.greedy) for each in self._likelihoods(pairs)]

    def _likelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> Any:
        return likelihoods(self.model, pairs, batch_tokens=self.batch_tokens, precision=self.precision)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs, sizes = [], []
        for request in requests:
            ids = np.array([self.eot_token_id, *self.encoding.encode(request.args[0])])
            windows = apart_windows(np.array([1]), np.array([len(ids)]), self.model.config.context_length)
            sizes.append(len(windows))
            for begin, length, scored in windows:
                window = ids[begin : begin + length + 1].tolist()
                pairs.append((window[: -int(scored)], window[-int(scored) :]))
        scores = iter(self._likelihoods(pairs))
        return [sum(next(scores).logprob for _ in range(size)) for size in sizes]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        alike: dict[str, list[int]] = {}  # numbers of the requests with the same options, which go together
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        answers: dict[int, str] = {}
        for numbers in alike.values():
            prompts, options = [requests[i].args[0] for i in numbers], requests[numbers[0]].args[1]
            until = options.get("until") or []
            config = SampleConfig(
                prompts=prompts,
                max_new_tokens=int(options.get("max_gen_toks", _NEW_TOKENS)),
                temperature=float(options.get("temperature", 0)) if options.get("do_sample") else 0,
                stop=[until] if isinstance(until, str) else list(until),
                batch_size=self.batch_size,
            )
            made = generate(self.model, prompts, config, tokenizer=self.encoding.reference)
            answers |= {i: sample.continuation for i, sample in zip(numbers, made, strict=True)}
        return [answers[i] for i in range(len(requests))]


if __name__ == "__main__":
    prepare_environment()
    cli_evaluate()
