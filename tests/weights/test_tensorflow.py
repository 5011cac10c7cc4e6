"""Proves that OpenAI's folder is read without TensorFlow, from one that TensorFlow wrote (tests/data/openai)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptpipe import UserError
from gptpipe.weights.find import read_weights
from gptpipe.weights.tensorflow import read_bundle
from tests.data.openai.make import HPARAMS, tensors

FOLDER = Path(__file__).parents[1] / "data" / "openai"


def test_every_tensor_is_the_one_that_was_written() -> None:
    found = read_bundle(str(FOLDER / "model.ckpt"))
    expected = tensors()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert np.array_equal(tensor.read().numpy(), expected[name]), name


@torch.no_grad()
def test_its_logits_are_those_of_transformers_with_the_same_weights() -> None:
    config = GPT2Config(
        vocab_size=HPARAMS["n_vocab"],
        n_positions=HPARAMS["n_ctx"],
        n_embd=HPARAMS["n_embd"],
        n_head=HPARAMS["n_head"],
        n_layer=HPARAMS["n_layer"],
    )
    theirs = GPT2LMHeadModel(config).eval()
    values = {name.removeprefix("model/"): torch.from_numpy(value) for name, value in tensors().items()}
    place = {"g": "weight", "b": "bias", "w": "weight"}
    state = {"transformer.wte.weight": values.pop("wte"), "transformer.wpe.weight": values.pop("wpe")}
    for name, value in values.items():
        *parts, last = name.split("/")
        if parts[0] != "ln_f":
            parts = ["h", parts[0][1:], *parts[1:]]
        state[f"transformer.{'.'.join(parts)}.{place[last]}"] = value.squeeze(0) if value.ndim == 3 else value
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    theirs.tie_weights()
    tokens = torch.arange(12)[None] * 23
    read = read_weights(str(FOLDER))
    assert torch.allclose(read.build().eval()(tokens), theirs(tokens).logits, atol=1e-4)
    assert (read.config.n_layer, read.config.tie_weights, read.config.vocab_size) == (2, True, 300)


DAMAGE = {
    "no data": ("model.ckpt.data-00000-of-00001", None, "no such file"),
    "cut off": ("model.ckpt.data-00000-of-00001", lambda data: data[:-100], "cut off: .* ends at byte"),
    "no index": ("model.ckpt.index", None, "no such file"),
    "index cut off": ("model.ckpt.index", lambda data: data[:-9], "not a whole index"),
    "index of nothing": ("model.ckpt.index", lambda data: b"", "not a whole index"),
    "index with holes": ("model.ckpt.index", lambda data: b"\x00" * 300 + data[300:], "not a whole index"),
    "hparams": ("hparams.json", lambda data: b"{}", "its hparams.json has no 'n_vocab'"),
    "hparams that are none": ("hparams.json", lambda data: b"<html>", "not JSON"),
    "another shape": (
        "hparams.json",
        lambda data: data.replace(b'"n_layer": 2', b'"n_layer": 3'),
        "the configuration does not fit",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged_is_one_line(case: str, tmp_path: Path) -> None:
    name, change, message = DAMAGE[case]
    folder = tmp_path / "there"
    shutil.copytree(FOLDER, folder)
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        read_weights(str(folder))
    assert "\n" not in str(caught.value)


def number(value: int) -> bytes:
    """As protocol buffers and LevelDB write it, seven bits a byte."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def table(content: bytes) -> bytes:
    """A table of LevelDB's with one block."""

    def block(entries: bytes) -> bytes:
        return entries + bytes(4) + b"\x01\0\0\0"

    body = block(content)
    place = len(body) + 5
    index = block(
        number(0) + number(1) + number(len(number(0) + number(len(body)))) + b"z" + number(0) + number(len(body))
    )
    footer = number(0) + number(0) + number(place) + number(len(index))
    return body + bytes(5) + index + bytes(5) + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (number(0) + number(600) + number(0) + b"n" * 600, "a name of 600 bytes"),
        (b"\xff" * 40, "a number of more than 64 bits"),
    ],
)
def test_a_small_index_that_would_fill_the_memory_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").write_bytes(table(content))
    with pytest.raises(UserError, match=said):
        read_bundle(str(tmp_path / "model.ckpt"))
