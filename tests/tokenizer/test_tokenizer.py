"""Proves that the packaged gpt2 tokenizer is OpenAI's, loses nothing, and needs no network."""

from __future__ import annotations

import importlib
import socket
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from gptpipe.errors import UserError
from gptpipe.tokenizer import END_OF_TEXT, Tokenizer, get_tokenizer, references
from gptpipe.tokenizer import gpt2 as gpt2_module

# The pattern as OpenAI published it with GPT-2 (encoder.py).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

nasty_text = st.lists(
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "word", "Ünïcödé", "123", "漢字", "🙂‍🙃", "\u00a0"])
    | st.sampled_from(["\ufeff", "\u0301", "\x00", END_OF_TEXT, "<|", "|>", "_", "(", "…"])
    | st.text(max_size=6),
    max_size=30,
).map("".join)


@pytest.fixture
def fresh_tokenizers() -> Iterator[None]:
    """Tokenizers are made anew in the test, and what it made is forgotten."""
    caches = (gpt2_module.gpt2, references._of_tiktoken)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_tokenizers: None) -> None:
    """Any use of a socket fails, and nothing that was fetched before is there."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("no network here")

    importlib.import_module("requests")  # whatever is imported first without sockets stays broken for later tests
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def original(gpt2_originals: Path) -> tiktoken.Encoding:
    """GPT-2 as tiktoken reads OpenAI's own two files."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    files = {"vocab_bpe_file": gpt2_originals / "vocab.bpe", "encoder_json_file": gpt2_originals / "encoder.json"}
    ranks = data_gym_to_mergeable_bpe_ranks(**{name: str(file) for name, file in files.items()})
    return tiktoken.Encoding(
        "original", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )


@cache
def with_gap() -> Tokenizer:
    """A tokenizer whose ids have a gap, as cl100k_base and o200k_base have."""
    gpt2 = get_tokenizer().encoding
    return Tokenizer(
        tiktoken.Encoding(
            "gap",
            pat_str=gpt2._pat_str,
            mergeable_ranks=gpt2._mergeable_ranks,
            special_tokens={END_OF_TEXT: 70_000},
        )
    )


def test_the_ranks_are_openai_s(original: tiktoken.Encoding) -> None:
    assert get_tokenizer().encoding._mergeable_ranks == original._mergeable_ranks


@given(nasty_text)
def test_the_ids_are_openai_s(original: tiktoken.Encoding, text: str) -> None:
    assert get_tokenizer().encode(text) == original.encode_ordinary(text)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("Hello, I am", [15496, 11, 314, 716]),
        ("Hello world", [15496, 995]),
        (" ", [220]),
        ("\n\n", [628]),
        ("\u00a0", [1849]),
        ("🙂", [8582, 25081]),
    ],
)
def test_known_texts_have_known_ids(text: str, ids: list[int]) -> None:
    assert get_tokenizer().encode(text) == ids


def test_the_lecture_s_text_has_the_lecture_s_numbers(lecture_text: Path) -> None:
    text = lecture_text.read_text("utf-8")
    assert len(text) == 20_479
    assert len(get_tokenizer().encode(text)) == 5_145


def test_what_the_pipeline_relies_on() -> None:
    gpt2 = get_tokenizer("gpt2")
    assert (gpt2.name, gpt2.vocab_size, gpt2.end_of_text) == ("gpt2", 50_257, 50_256)
    assert gpt2.dtype is np.uint16
    assert with_gap().dtype is np.uint32
    assert get_tokenizer("gpt2") is gpt2


def test_end_of_text_is_special_only_when_asked() -> None:
    gpt2 = get_tokenizer()
    text = f"one{END_OF_TEXT}two"
    assert gpt2.encode(text, special=True) == [*gpt2.encode("one"), 50_256, *gpt2.encode("two")]
    assert 50_256 not in gpt2.encode(text)
    assert 50_256 not in gpt2.encode_array(text)
    assert gpt2.decode(gpt2.encode(text)) == gpt2.decode(gpt2.encode(text, special=True)) == text


@given(nasty_text)
def test_decoding_gives_the_text_back(text: str) -> None:
    gpt2 = get_tokenizer()
    assert gpt2.decode(gpt2.encode(text)) == text
    assert gpt2.decode(gpt2.encode(text, special=True)) == text


@given(nasty_text)
def test_an_array_of_ids_is_the_list_of_ids_in_the_smallest_type(text: str) -> None:
    for tokenizer in (get_tokenizer(), with_gap()):
        array = tokenizer.encode_array(text)
        assert array.dtype == tokenizer.dtype
        assert array.ndim == 1
        assert array.tolist() == tokenizer.encode(text)


@given(nasty_text)
def test_byte_lengths_add_up_to_the_utf8_length(text: str) -> None:
    gpt2 = get_tokenizer()
    assert gpt2.byte_lengths[gpt2.encode(text)].sum() == len(text.encode("utf-8"))


def test_special_tokens_and_gaps_stand_for_no_bytes() -> None:
    for tokenizer in (get_tokenizer(), with_gap()):
        lengths = tokenizer.byte_lengths
        assert lengths.shape == (tokenizer.vocab_size,)
        assert lengths[:50_256].min() == 1
        assert not lengths[50_256:].any()


def test_half_a_character_decodes_to_a_replacement_and_an_unknown_id_to_nothing() -> None:
    gpt2 = get_tokenizer()
    assert gpt2.decode([8582]) == "\ufffd"
    assert gpt2.decode([15496, 50_257, -1, 10**9, 995]) == "Hello world"


def test_an_id_in_a_gap_decodes_to_nothing() -> None:
    assert with_gap().decode([15496, 60_000, 995]) == "Hello world"


def test_the_digest_tells_tokenizers_apart_and_is_pinned() -> None:
    gpt2 = get_tokenizer()
    swapped = {**gpt2.encoding._mergeable_ranks, b"a": 65, b"b": 64}
    arguments = {"pat_str": gpt2.encoding._pat_str, "special_tokens": {END_OF_TEXT: 50_256}}
    others = [
        with_gap(),
        Tokenizer(tiktoken.Encoding("gpt2", mergeable_ranks=swapped, **arguments)),
        Tokenizer(
            tiktoken.Encoding(
                "gpt2", mergeable_ranks=gpt2.encoding._mergeable_ranks, **{**arguments, "pat_str": GPT2_PATTERN}
            )
        ),
    ]
    assert len({gpt2.sha256, *(other.sha256 for other in others)}) == 4
    assert gpt2.sha256 == "5823b0b388e6629e50fdce06f1fba9c44b4c829daf34d1904e1d3c3a4a69d083"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_ranks_are_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tokenizers: None
) -> None:
    content = bytearray(resources.files("gptpipe").joinpath("tokenizer", "gpt2.bpe").read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 if damage == "cut" else 0 :]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "gpt2.bpe").write_bytes(content)
    monkeypatch.setattr(gpt2_module, "resources", SimpleNamespace(files=lambda _: tmp_path))
    with pytest.raises(UserError, match="damaged") as caught:
        get_tokenizer()
    assert caught.value.where.endswith("gpt2.bpe")


def test_gpt2_needs_no_network(no_network: None) -> None:
    assert get_tokenizer().encode("Every effort moves you") == [6109, 3626, 6100, 345]


def test_another_encoding_without_a_network_is_refused_by_name(no_network: None) -> None:
    with pytest.raises(UserError) as caught:
        get_tokenizer("cl100k_base")
    assert "cl100k_base" in caught.value.where
    assert "TIKTOKEN_CACHE_DIR" in caught.value.hint


def test_an_unknown_encoding_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError) as caught:
        get_tokenizer("gpt-two")
    assert caught.value.where == "data.tokenizer"
    assert "cl100k_base" in caught.value.hint


spaces = st.lists(
    st.sampled_from(" \n\t\r\x0b\x0c\x1c\x1f\x01\u00a0\u0085\u2003\u2028\u3000\u200b")
    | st.sampled_from(["a", "é", "漢", "1", "'s", "'", "—", "(", "  ", "\n\n    ", "word"]),
    max_size=40,
).map("".join)


@given(text=spaces | nasty_text)
def test_an_array_holds_tiktoken_s_own_ids_whatever_white_space_there_is(text: str) -> None:
    gpt2 = get_tokenizer("gpt2")
    assert gpt2.encode_array(text).tolist() == gpt2.encoding.encode_ordinary(text)


def test_arrays_of_the_standard_library_hold_tiktoken_s_own_ids() -> None:
    gpt2, seen = get_tokenizer("gpt2"), 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = file.read_text("utf-8", errors="replace")
        assert gpt2.encode_array(text).tolist() == gpt2.encoding.encode_ordinary(text), file
        seen += len(text)
    assert seen > 1_000_000


def test_another_encoding_with_gpt2_s_pattern_keeps_its_own_ranks() -> None:
    gpt2 = get_tokenizer("gpt2").encoding
    ranks = {**gpt2._mergeable_ranks, b"  ": 50_257}
    other = tiktoken.Encoding(
        "other", pat_str=gpt2._pat_str, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50_256}
    )
    text = "def f():\n    return  1\n" * 3
    assert Tokenizer(other).encode_array(text).tolist() == other.encode_ordinary(text)
    assert 50_257 in Tokenizer(other).encode_array(text)
