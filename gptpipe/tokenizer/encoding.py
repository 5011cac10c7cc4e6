"""A tokenizer: a tiktoken encoding with what the pipeline needs around it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import tiktoken

END_OF_TEXT = "<|endoftext|>"
OWN = "bpe-"
"""How the names of tokenizers begin that came in files."""

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# the same words where no white space is to be left to the next word
_GREEDY_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"""
_MARK = "\x01"
_MARK_BYTE = _MARK.encode()
_OTHER_SPACE = re.compile(  # white space that is not ASCII
    rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)


# a pattern of tokens, and their ids
_Search: TypeAlias = tuple[re.Pattern[str], dict[str, int]]


@dataclass(frozen=True)
class AddedToken:
    """A token of a Hugging Face tokenizer that text is searched for before bytes are merged.

    Attributes:
        special: whether it stands for no text of its own, as a mark of a turn does.
        first: whether it is searched for before those that are not.
    """

    text: str
    id: int
    special: bool = False
    first: bool = False


class Tokenizer:
    """A tiktoken encoding with what the pipeline needs around it.

    Attributes:
        name: the encoding's name, or of a tokenizer that came in files `bpe-` and the beginning of `sha256`.
        reference: what `get_tokenizer` finds it by: its name, or a folder with `#` and the name.
        vocab_size: number of ids, special tokens included.
        separator: the text of the token between documents.
        end_of_text: its id.
        added: what text is searched for before bytes are merged, the separator left out.
        normalization: the form of Unicode that the rest of a text is brought into first; empty leaves it as it is.
        files: of a tokenizer that came in files, those that give it again, by their names.
    """

    def __init__(
        self,
        encoding: tiktoken.Encoding,
        *,
        separator: str = "",
        added: Sequence[AddedToken] = (),
        normalization: Literal["", "NFC"] = "",
    ) -> None:
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.separator = separator or END_OF_TEXT
        self.end_of_text = encoding._special_tokens[self.separator]
        self.added = tuple(sorted(added, key=lambda token: token.id))
        self.normalization = normalization
        self.files: dict[str, bytes] = {}
        self._is_own = bool(separator)
        self.name = f"{OWN}{self.sha256[:12]}" if self._is_own else encoding.name
        self.reference = self.name

    def kept_in(self, folder: str) -> Tokenizer:
        """This tokenizer with a reference to a folder that holds its files."""
        same = copy.copy(self)
        same.reference = f"{folder}#{self.name}"
        return same

    @cached_property
    def sha256(self) -> str:
        """Digest of everything that decides how text becomes ids: pattern, ranks and special tokens."""
        state = hashlib.sha256(self.encoding._pat_str.encode())
        for token, rank in sorted(self.encoding._mergeable_ranks.items(), key=lambda item: item[1]):
            state.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        for text, rank in sorted(self.encoding._special_tokens.items()):
            state.update(rank.to_bytes(4, "little") + text.encode())
        if self._is_own:
            added = [[token.text, token.id, token.special, token.first] for token in self.added]
            state.update(json.dumps([self.separator, added]).encode() + self.normalization.encode())
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
        """UTF-8 bytes of text each id stands for, shape (vocab_size,), int64; zero where it is never made of text."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.encoding._mergeable_ranks.items():
            lengths[rank] = len(token)
        for added in self.added:
            lengths[added.id] = len(added.text.encode())
        return lengths

    @cached_property
    def _known(self) -> frozenset[int]:
        """Ids that stand for something: vocabularies have gaps."""
        return frozenset(self.encoding._mergeable_ranks.values()) | frozenset(self.encoding._special_tokens.values())

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`. The separator in it is one special token when `special`, plain text otherwise."""
        ids: list[int] = []
        for part in self._split(text, special=special):
            ids += [part] if isinstance(part, int) else self.encoding.encode_ordinary(part)
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of `text` as plain text, shape (n,), in `dtype`, without a Python list in between."""
        parts = [
            np.array([part]) if isinstance(part, int) else self._encode_part(part)
            for part in self._split(text, special=False)
        ]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(self.dtype)

    def _encode_part(self, text: str) -> np.ndarray:
        ids = self._encode_without_looking_ahead(text) if self.pattern == GPT2_PATTERN else None
        return self.encoding.encode_to_numpy(text, disallowed_special=()) if ids is None else ids

    @cached_property
    def _searches(self) -> dict[bool, tuple[_Search | None, _Search | None]]:
        """What text is searched for, before it is normalized and after: with the separator among it, and without."""
        first = {token.text: token.id for token in self.added if token.first}
        then = {token.text: token.id for token in self.added if not token.first}
        with_separator = {**first, self.separator: self.end_of_text}
        return {True: (_search(with_separator), _search(then)), False: (_search(first), _search(then))}

    def _split(self, text: str, *, special: bool) -> list[str | int]:
        """A text as the ids of the tokens that are searched for and the texts between them."""
        first, then = self._searches[special]
        parts = (self._normalized(part) for part in _apart(text, first))
        return [piece for part in parts for piece in _apart(part, then)]

    def _normalized(self, part: str | int) -> str | int:
        if self.normalization and isinstance(part, str):
            return unicodedata.normalize(self.normalization, part)
        return part

    def _encode_without_looking_ahead(self, text: str) -> np.ndarray | None:
        """Ids of a text without added tokens, sooner than tiktoken's own way, or None where this cannot be done.

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
        """The encoding's ranks with a pattern that does not look ahead, and the mark as a special token."""
        return tiktoken.Encoding(
            f"{self.name}-marked",
            pat_str=_GREEDY_PATTERN,
            mergeable_ranks=self.encoding._mergeable_ranks,
            special_tokens={_MARK: self.encoding.n_vocab},
        )

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids without a token become nothing."""
        return self.encoding.decode([i for i in ids if i in self._known], errors="replace")


def _search(ids: dict[str, int]) -> _Search | None:
    """The longest of the tokens that begin at a place is taken, as Hugging Face's tokenizers do; None where none is."""
    if not ids:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(ids, key=len, reverse=True))), ids


def _apart(part: str | int, search: _Search | None) -> Iterator[str | int]:
    if isinstance(part, int) or search is None:
        yield part
        return
    (pattern, ids), place = search, 0
    for match in pattern.finditer(part):
        if part[place : match.start()]:
            yield part[place : match.start()]
        yield ids[match.group()]
        place = match.end()
    if part[place:] or not place:
        yield part[place:]
