"""Proves that hf:OWNER/NAME is fetched from the hub, once, and what is said where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from gptpipe.weights.find import read_weights
from tests.fixtures.datasets import serving
from tests.fixtures.hub import gptpipe_with_hub, hub_of
from tests.weights.test_weights import reference


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_repository_of_the_hub_is_what_its_folder_is(sharded: bool, tmp_path: Path) -> None:
    model = reference(2, 2, 32, 16, 50257)
    folder = tmp_path / "there"
    model.save_pretrained(folder, max_shard_size="2MB" if sharded else "1GB")
    if not sharded:  # as openai-community/gpt2 has them: without a prefix, and with files for other libraries beside
        tensors = {k.removeprefix("transformer."): v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
        (folder / "tf_model.h5").write_bytes(b"not wanted")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    command = ("import", "hf:someone/gpt", "--out", str(tmp_path / "out"))
    with serving(hub_of("models/someone/gpt", files)) as url:
        made = gptpipe_with_hub(url, tmp_path / "hf", *command)
    assert made.returncode == 0, made.stdout + made.stderr
    checkpoint = json.loads(made.stdout)["checkpoint"]
    assert read_weights(checkpoint).identity == read_weights(str(folder)).identity
    assert not list((tmp_path / "hf").rglob("*.h5"))
    again = gptpipe_with_hub(url, tmp_path / "hf", *command[:-1], str(tmp_path / "again"))  # the hub is away now
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_repository_that_the_hub_has_not_is_one_line(tmp_path: Path) -> None:
    with serving(hub_of("models/someone/gpt", {})) as url:
        made = gptpipe_with_hub(url, tmp_path / "hf", "import", "hf:someone/else", "--out", str(tmp_path / "out"))
    assert made.returncode == 2, made.stderr
    assert json.loads(made.stdout)["error"]["where"] == "hf:someone/else"
    assert made.stderr.count("\n") == 1, made.stderr
    assert not (tmp_path / "out").exists()
