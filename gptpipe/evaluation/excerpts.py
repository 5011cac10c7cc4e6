"""Every token of an excerpt as the model saw it: its probability, its rank, and what was likelier."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from gptpipe.evaluation.documents import Documents
from gptpipe.evaluation.tally import Tally
from gptpipe.evaluation.windows import apart_windows
from gptpipe.model.gpt import GPT
from gptpipe.model.precision import Precision
from gptpipe.tokenizer import Tokenizer

ALTERNATIVES = 5
_EXCERPT, _WHOLE_TEXT = 300, 1500  # tokens
_FEWEST = 40  # tokens of a document that is shown


@dataclass(frozen=True)
class Look:
    """A token of a text.

    Attributes:
        text: of the token; where a character is spread over several tokens, all of it stands at the last.
        nats: what it cost. rank: 1 is the likeliest.
        alternatives: the likeliest tokens and their probabilities, likeliest first.
    """

    text: str
    nats: float
    probability: float
    rank: int
    alternatives: list[tuple[str, float]]


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a document, or the whole of it.

    Attributes:
        why: why it is shown. tokens: of the whole document. cross_entropy: of the whole document, nats per token.
    """

    why: str
    name: str
    tokens: int
    cross_entropy: float
    looks: list[Look]


def excerpts(model: GPT, documents: Documents, tally: Tally) -> list[Excerpt]:
    """Of a text, its beginning; of many documents the two that cost most, two in the middle and the two cheapest."""
    if len(documents) == 1:
        return [_excerpt("as it begins", 0, _WHOLE_TEXT, model, documents, tally)]
    long_enough = np.flatnonzero(tally.document_tokens >= _FEWEST)
    if not len(long_enough):
        long_enough = np.flatnonzero(tally.document_tokens)
    means = tally.document_nats[long_enough] / tally.document_tokens[long_enough]
    order = long_enough[np.argsort(-means, kind="stable")]
    half = len(order) // 2
    chosen = {int(i): "among the dearest" for i in order[:2]}
    chosen |= {int(i): "in the middle" for i in order[max(0, half - 1) : half + 1] if int(i) not in chosen}
    chosen |= {int(i): "among the cheapest" for i in order[-2:] if int(i) not in chosen}
    return [_excerpt(why, i, _EXCERPT, model, documents, tally) for i, why in chosen.items()]


def _excerpt(why: str, number: int, limit: int, model: GPT, documents: Documents, tally: Tally) -> Excerpt:
    start, end = int(documents.starts[number]), int(documents.ends[number])
    looks = look(model, documents, start, min(end, start + limit))
    name = documents.names[number]
    nats, tokens = float(tally.document_nats[number]), int(tally.document_tokens[number])
    return Excerpt(why, name, end - start, nats / max(1, tokens), looks)


@torch.no_grad()
def look(model: GPT, documents: Documents, start: int, end: int) -> list[Look]:
    """Tokens `start` to `end` (exclusive) of a stream, read from `start` on, after a separator.

    Each but the first ones has at least half a context before it.
    """
    context = model.config.context_length
    device = next(model.parameters()).device
    precision = "bfloat16" if model.lm_head.weight.dtype == torch.bfloat16 else "float32"
    training = model.training
    model.eval()
    ids, numbers = documents.read(start, end), []
    seen = np.concatenate([[documents.tokenizer.end_of_text], ids])  # begins one place before
    for begin, length, scored in apart_windows(np.array([1]), np.array([len(seen)]), context, max(1, context // 2)):
        window = torch.from_numpy(seen[begin : begin + length]).unsqueeze(0).to(device)
        with Precision(precision, device.type).autocast():
            logits = model.lm_head(model.hidden(window)[0, -scored:])
        logprobs = torch.log_softmax(logits.float(), dim=-1).cpu()
        targets = torch.from_numpy(seen[begin + 1 : begin + 1 + length][-scored:]).unsqueeze(1)
        own = logprobs.gather(1, targets)
        ranks = (logprobs > own).sum(dim=1) + 1
        best, tokens = logprobs.topk(min(ALTERNATIVES, logprobs.shape[1]), dim=1)
        numbers += list(zip(own[:, 0].tolist(), ranks.tolist(), best.exp().tolist(), tokens.tolist(), strict=True))
    model.train(training)
    texts = _texts(documents.tokenizer, ids)
    return [
        Look(
            text=text,
            nats=-own,
            probability=float(np.exp(own)),
            rank=rank,
            alternatives=[
                (documents.tokenizer.decode([token]), share) for token, share in zip(tokens, best, strict=True)
            ],
        )
        for text, (own, rank, best, tokens) in zip(texts, numbers, strict=True)
    ]


def _texts(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The text of each token, whole characters at the token that ends them."""
    pieces = [tokenizer.encoding.decode_single_token_bytes(int(i)) for i in ids]
    ends = np.cumsum([0, *(len(piece) for piece in pieces)])
    data = b"".join(pieces)
    # a byte that goes on with a character is 10xxxxxx: a token's text ends where the next character begins
    begins = [i for i in range(len(data) + 1) if i == len(data) or data[i] & 0xC0 != 0x80]
    cuts = [begins[int(np.searchsorted(begins, end, side="right")) - 1] for end in ends]
    return [data[a:b].decode("utf-8", "replace") for a, b in pairwise(cuts)]
