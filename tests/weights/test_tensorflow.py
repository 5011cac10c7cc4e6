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
