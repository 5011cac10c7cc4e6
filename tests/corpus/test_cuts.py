"""Cutting a text in pieces changes no token, wherever it is cut."""

from __future__ import annotations

import io
import itertools
import unicodedata
from functools import cache
from typing import Any
from unittest import mock

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpipe.corpus import cuts
from gptpipe.errors import UserError
from gptpipe.tokenizer import END_OF_TEXT, QWEN_PATTERN, AddedToken, Tokenizer
from tests.fixtures.corpora import CL100K_PATTERN, GPT2, O200K_PATTERN, nasty


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k", "qwen"])
def encoding(request: pytest.FixtureRequest) -> tiktoken.Encoding:
    """The patterns of OpenAI's encodings over GPT-2's ranks: the pattern decides where a token may end."""
    own = {"gpt2": GPT2._pat_str, "cl100k": CL100K_PATTERN, "o200k": O200K_PATTERN, "qwen": QWEN_PATTERN}
    pattern = own[request.param]
    return tiktoken.Encoding(
        request.param, pat_str=pattern, mergeable_ranks=GPT2._mergeable_ranks, special_tokens={END_OF_TEXT: 50_256}
    )


def pieces_of(text: str, cell: int, safe: Any) -> list[str]:
    """The pieces of a text cut at cells of that many bytes."""
    with mock.patch.object(cuts, "CELL", cell):
        return [piece.data.decode() for piece in cuts.cut(io.BytesIO(text.encode()), safe)]


@given(text=nasty, limit=st.integers(1, 40))
@settings(max_examples=400, deadline=None)
def test_pieces_have_the_tokens_of_the_whole_wherever_it_is_cut(
    encoding: tiktoken.Encoding, text: str, limit: int
) -> None:
    pieces = pieces_of(text, limit, cuts.SAFE_IN_GPT2 if encoding.name == "gpt2" else cuts.SAFE_ANYWHERE)
    assert "".join(pieces) == text
    words = list(itertools.chain(*(regex.findall(encoding._pat_str, piece) for piece in pieces)))
    assert words == regex.findall(encoding._pat_str, text)  # whatever the ranks then merge
    together = list(itertools.chain(*(encoding.encode_ordinary(piece) for piece in pieces)))
    assert together == encoding.encode_ordinary(text)
    whole = unicodedata.normalize("NFC", text)
    assert "".join(unicodedata.normalize("NFC", piece) for piece in pieces) == whole


@given(words=st.lists(st.text("abcXYZ", min_size=1, max_size=9), min_size=1, max_size=60), limit=st.integers(12, 40))
def test_ordinary_text_is_cut_at_the_first_safe_place_of_every_cell(words: list[str], limit: int) -> None:
    text = " ".join(words)
    pieces = pieces_of(text, limit, cuts.SAFE_ANYWHERE)
    places = list(itertools.accumulate(map(len, pieces)))[:-1]
    wanted = {text.find(" ", n) for n in range(limit, len(text), limit)} - {-1}
    assert places == sorted(wanted)


def in_ranges(data: bytes, safe: Any, limit: int, step: int, block: int) -> tuple[list[cuts.Piece], list[cuts.Piece]]:
    """The pieces of a text read at once, and of its ranges read apart in small blocks."""
    with mock.patch.object(cuts, "CELL", limit):
        whole = list(cuts.cut(io.BytesIO(data), safe))
        found: list[cuts.Piece] = []
        with mock.patch.object(cuts, "_BLOCK", block):
            for start in range(0, len(data), step * limit):
                stream = io.BytesIO(data)
                stream.seek(cuts.first_byte(start, safe))
                stop = start + step * limit if start + step * limit < len(data) else None
                found += cuts.cut(stream, safe, start, stop)
    return whole, found


@given(text=nasty, limit=st.integers(1, 20), step=st.integers(1, 5), block=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_ranges_read_apart_hold_the_pieces_of_the_whole(text: str, limit: int, step: int, block: int) -> None:
    whole, found = in_ranges(text.encode(), cuts.SAFE_ANYWHERE, limit, step, block)
    assert found == whole


ADDED = ("<mark von zwei>", "zwei>", " und", "und 1", "a b c d e", "1a")


@cache
def with_added() -> Tokenizer:
    """GPT-2's tokenizer with those tokens added."""
    ids = {token: 50_257 + number for number, token in enumerate(ADDED)}
    encoding = tiktoken.Encoding(
        "own", pat_str=GPT2._pat_str, mergeable_ranks=GPT2._mergeable_ranks, special_tokens={END_OF_TEXT: 50_256, **ids}
    )
    return Tokenizer(encoding, separator=END_OF_TEXT, added=[AddedToken(token, id_) for token, id_ in ids.items()])


parts = st.lists(st.sampled_from([*ADDED, " ", "\n", "u", "nd", "<mark", " von", "1", "a", "b "]), max_size=30)


@given(text=parts.map("".join), limit=st.integers(1, 20), step=st.integers(1, 5), block=st.integers(1, 40))
@settings(max_examples=600, deadline=None)
def test_no_cut_is_inside_a_token_that_text_is_searched_for(text: str, limit: int, step: int, block: int) -> None:
    tokenizer = with_added()
    whole, found = in_ranges(text.encode(), cuts.safe_places(tokenizer), limit, step, block)
    assert found == whole
    assert b"".join(piece.data for piece in whole) == text.encode()
    together = list(itertools.chain(*(tokenizer.encode(piece.data.decode()) for piece in whole)))
    assert together == tokenizer.encode(text)


def test_text_without_a_place_to_cut_stays_whole() -> None:
    assert pieces_of("1" * 500, 10, cuts.SAFE_ANYWHERE) == ["1" * 500]
    assert pieces_of("", 10, cuts.SAFE_ANYWHERE) == []
    assert pieces_of("1" * 50 + "word and", 10, cuts.SAFE_ANYWHERE) == ["1" * 50, "word and"]


class Endless(io.RawIOBase):
    """Letters without an end, as a small packed file may hold them."""

    def read(self, size: int = -1) -> bytes:
        return b"a" * size


def test_a_text_without_a_place_to_cut_is_refused_before_it_fills_the_memory() -> None:
    with (
        mock.patch.object(cuts, "LONGEST", 3_000_000),
        pytest.raises(UserError, match="3 MB from byte 500,000 on without a place") as refused,
    ):
        list(cuts.cut(Endless(), cuts.SAFE_IN_GPT2, where="bomb.txt.gz"))  # type: ignore[arg-type]
    assert refused.value.where == "bomb.txt.gz"
