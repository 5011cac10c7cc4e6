"""tiktoken encodings. `gpt2` works with no network: its merge ranks travel with the package."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
import tiktoken

from gptpipe.errors import UserError

END_OF_TEXT = "<|endoftext|>"

# The file OpenAI published as vocab.bpe; the digest is the one in tiktoken_ext/openai_public.py.
_GPT2_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


# the same words where no white space is to be left to the next word
_GREEDY_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"""
_MARK = "\x01"
_MARK_BYTE = _MARK.encode()
_OTHER_SPACE = re.compile(  # white space that is not ASCII
    rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)


class Tokenizer:
    """A tiktoken encoding with what the pipeline needs around it.

    Attributes:
        name: the encoding's name.
        vocab_size: number of ids, special tokens included.
        end_of_text: id of `<|endoftext|>`, the separator between documents.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        self.name = encoding.name
        self.vocab_size = encoding.n_vocab
        self.end_of_text = encoding.eot_token

    @cached_property
    def sha256(self) -> str:
        """Digest of everything that decides how text becomes ids: pattern, ranks and special tokens."""
        state = hashlib.sha256(self.encoding._pat_str.encode())
        for token, rank in sorted(self.encoding._mergeable_ranks.items(), key=lambda item: item[1]):
            state.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        for text, rank in sorted(self.encoding._special_tokens.items()):
            state.update(rank.to_bytes(4, "little") + text.encode())
        return state.hexdigest()

    @property
    def pattern(self) -> str:
        """The regular expression that splits text before bytes are merged."""
        return self.encoding._pat_str

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes each id stands for, shape (vocab_size,), int64; zero for special tokens and gaps."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.encoding._mergeable_ranks.items():
            lengths[rank] = len(token)
        return lengths

    @cached_property
    def _known(self) -> frozenset[int]:
        """Ids that stand for something: vocabularies have gaps."""
        return frozenset(self.encoding._mergeable_ranks.values()) | frozenset(self.encoding._special_tokens.values())

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`. `<|endoftext|>` is one special token when `special`, plain text otherwise."""
        if special:
            return self.encoding.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        return self.encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of `text` as plain text, shape (n,), in `dtype`, without a Python list in between."""
        ids = self._encode_without_looking_ahead(text) if self.pattern == GPT2_PATTERN else None
        if ids is None:
            ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        return ids.astype(self.dtype)

    def _encode_without_looking_ahead(self, text: str) -> np.ndarray | None:
        """The same ids sooner, or None where this cannot be done.

        GPT-2's pattern looks ahead in one place: white space before a word leaves its last character to the word.
        That takes a backtracking matcher. Here such white space is marked before its last character with a byte
        that the text has not, as a special token, at which tiktoken splits first; then a pattern that an automaton
        can match says the same.
        """
        data = text.encode()
        if _MARK_BYTE in data or (len(data) != len(text) and _OTHER_SPACE.search(data)):
            return None
        content = np.frombuffer(data, dtype=np.uint8)
        space = (content == 0x20) | (content - np.uint8(9) < np.uint8(5))  # space, and \t to \r
        last = np.flatnonzero(space[:-2] & space[1:-1] & ~space[2:]) + 1
        if len(last):
            marked = np.insert(content, last, _MARK_BYTE[0])
            text = marked.tobytes().decode()
        ids = self._marked.encode_to_numpy(text, allowed_special={_MARK}, disallowed_special=())
        kept: np.ndarray = ids[ids != self.encoding.n_vocab] if len(last) else ids
        return kept

    @cached_property
    def _marked(self) -> tiktoken.Encoding:
        """These ranks with a pattern that does not look ahead, and the mark as a special token."""
        return tiktoken.Encoding(
            f"{self.name}-marked",
            pat_str=_GREEDY_PATTERN,
            mergeable_ranks=self.encoding._mergeable_ranks,
            special_tokens={_MARK: self.encoding.n_vocab},
        )

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids without a token become nothing."""
        return self.encoding.decode([i for i in ids if i in self._known], errors="replace")


@lru_cache(maxsize=4)
def get_tokenizer(name: str = "gpt2") -> Tokenizer:
    """The tokenizer called `name`: `gpt2` offline, any other tiktoken encoding where the network allows.

    Raises:
        UserError: no such encoding, or its ranks cannot be fetched.
    """
    if name == "gpt2":
        ranks = _gpt2_ranks()
        return Tokenizer(
            tiktoken.Encoding(
                "gpt2",
                pat_str=GPT2_PATTERN,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: len(ranks)},
                explicit_n_vocab=len(ranks) + 1,
            )
        )
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UserError(
            f"no tiktoken encoding is called {name!r}",
            where="data.tokenizer",
            hint=f"known: {', '.join(known)}",
        )
    try:
        return Tokenizer(tiktoken.get_encoding(name))
    except Exception as error:  # requests raises a whole family; each means that the ranks did not come
        raise UserError(
            f"its ranks could not be fetched ({type(error).__name__})",
            where=f"tokenizer {name}",
            hint="gpt2 needs no network; for others fill TIKTOKEN_CACHE_DIR on a machine that has one",
        ) from error


def gpt2_files() -> tuple[dict[str, int], str]:
    """GPT-2's `vocab.json` and `merges.txt` as OpenAI published them: ids by their tokens' characters, and merges."""
    character = {byte: letter for letter, byte in _bytes_by_character().items()}
    ids = {"".join(character[byte] for byte in token): rank for token, rank in _gpt2_ranks().items()}
    return {**ids, END_OF_TEXT: len(ids)}, _gpt2_merges().decode("utf-8")


def _gpt2_merges() -> bytes:
    data = resources.files("gptpipe").joinpath("ranks", "gpt2.bpe").read_bytes()
    if hashlib.sha256(data).hexdigest() != _GPT2_BPE_SHA256:
        raise UserError(
            "the BPE ranks in the package are damaged",
            where="gptpipe/ranks/gpt2.bpe",
            hint="reinstall gptpipe",
        )
    return data


def _bytes_by_character() -> dict[str, int]:
    """GPT-2 writes bytes as printable characters: those that are printable as themselves, the rest from U+0100 on."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _gpt2_ranks() -> dict[bytes, int]:
    """Merge ranks of GPT-2: the 256 bytes in GPT-2's order, then one token a merge of `gpt2.bpe`."""
    byte_of = _bytes_by_character()
    ranks = {bytes([b]): rank for rank, b in enumerate(byte_of.values())}
    for line in _gpt2_merges().decode("utf-8").split("\n")[1:-1]:
        left, right = line.split()
        ranks[bytes(byte_of[c] for c in left + right)] = len(ranks)
    return ranks
