"""A Hugging Face folder whose tokenizer is not GPT-2's is refused: its ids mean other text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gptpipe.errors import UserError
from gptpipe.export import export_hf
from gptpipe.pretrained import read_weights
from gptpipe.tokenizer import gpt2_files


def write_model(folder: Path, vocab: int = 50257) -> None:
    config = GPT2Config(vocab_size=vocab, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)


def gpt2(folder: Path) -> GPT2TokenizerFast:
    ids, merges = gpt2_files()
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text(merges)
    return GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_gpt2s_own_tokenizer_is_read_in_either_form(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    tokenizer = gpt2(tmp_path / "model")
    assert read_weights(str(tmp_path / "model")).tokenizer == "gpt2"
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "model" / name).unlink()
    tokenizer.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").exists()
    assert read_weights(str(tmp_path / "model")).tokenizer == "gpt2"
    export_hf(str(tmp_path / "model"), str(tmp_path / "out"))
    assert read_weights(str(tmp_path / "out")).tokenizer == "gpt2"


def other_language(folder: Path) -> None:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["wir sind hier und dort"] * 50, vocab_size=300, special_tokens=["<|endoftext|>"])
    trained.save_model(str(folder))


def swapped(folder: Path) -> None:
    gpt2(folder)
    ids = json.loads((folder / "vocab.json").read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "vocab.json").write_text(json.dumps(ids))


def added(folder: Path) -> None:
    tokenizer = gpt2(folder)
    tokenizer.add_tokens(["<user>", "<bot>", "<end>"])
    tokenizer.save_pretrained(folder)


def added_in_the_old_form(folder: Path) -> None:
    gpt2(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<user>": 50257}))


def reordered(folder: Path) -> None:
    gpt2(folder)
    lines = (folder / "merges.txt").read_text().split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    (folder / "merges.txt").write_text("\n".join(lines))


def with_a_space_before(folder: Path) -> None:
    gpt2(folder).save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ')


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another language": (other_language, "its tokenizer is not GPT-2's"),
    "two ids swapped": (swapped, "'a' is"),
    "tokens added": (added, "has 3 tokens that GPT-2's has not: '<bot>', '<end>', '<user>'"),
    "a token added in the old form": (added_in_the_old_form, "has 1 token that GPT-2's has not: '<user>'"),
    "merges in another order": (reordered, "merges in another order"),
    "a space before the text": (with_a_space_before, "splits text in another way"),
    "damaged": (damaged, "tokenizer.json: not JSON"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("how", ["folder", "file"])
def test_another_tokenizer_is_refused_by_what_is_different(tmp_path: Path, case: str, how: str) -> None:
    spoil, message = OTHERS[case]
    write_model(tmp_path, 50260 if case == "tokens added" else 50257)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        read_weights(str(tmp_path / ("model.safetensors" if how == "file" else "")))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
