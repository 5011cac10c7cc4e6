"""GPT-2's tokenizer without a network: its merges travel with the package."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources

import tiktoken

from gptpipe.errors import UserError
from gptpipe.tokenizer.encoding import END_OF_TEXT, GPT2_PATTERN, Tokenizer

# The file OpenAI published as vocab.bpe; the digest is the one in tiktoken_ext/openai_public.py.
_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@lru_cache(maxsize=1)
def gpt2() -> Tokenizer:
    """GPT-2's tokenizer, 50,257 tokens.

    Raises:
        UserError: the merges in the package are damaged.
    """
    ranks = _ranks()
    return Tokenizer(
        tiktoken.Encoding(
            "gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: len(ranks)},
            explicit_n_vocab=len(ranks) + 1,
        )
    )


def gpt2_files() -> tuple[dict[str, int], str]:
    """GPT-2's `vocab.json` and `merges.txt` as OpenAI published them: ids by their tokens' characters, and merges."""
    ids = {as_characters(token): rank for token, rank in _ranks().items()}
    return {**ids, END_OF_TEXT: len(ids)}, _merges().decode("utf-8")


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """The bytes by the printable characters that stand for them in the files of a byte-level tokenizer.

    Bytes that are printable as themselves stand for themselves, the rest are the characters from U+0100 on. The order
    is that of the ids of GPT-2.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def as_characters(token: bytes) -> str:
    """A token's bytes as the characters that stand for them."""
    return "".join(map(_character_of_byte().__getitem__, token))


@lru_cache(maxsize=1)
def _character_of_byte() -> dict[int, str]:
    return {byte: letter for letter, byte in byte_of_character().items()}


def _merges() -> bytes:
    data = resources.files("gptpipe").joinpath("tokenizer", "gpt2.bpe").read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise UserError(
            "the BPE ranks in the package are damaged",
            where="gptpipe/tokenizer/gpt2.bpe",
            hint="reinstall gptpipe",
        )
    return data


def _ranks() -> dict[bytes, int]:
    """Merge ranks of GPT-2: the 256 bytes in GPT-2's order, then one token a merge of `gpt2.bpe`."""
    byte_of = byte_of_character()
    ranks = {bytes([b]): rank for rank, b in enumerate(byte_of.values())}
    for line in _merges().decode("utf-8").split("\n")[1:-1]:
        left, right = line.split()
        ranks[bytes(byte_of[c] for c in left + right)] = len(ranks)
    return ranks
