"""Weights out: what `transformers` does with the folder, offline, and what the card says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

from gptpipe import UserError, load
from gptpipe.evaluation.evaluate import compare_tallies, evaluate_whole
from gptpipe.evaluation.result import Against, Evaluation
from gptpipe.export.folder import export_hf
from gptpipe.tokenizer import get_tokenizer, gpt2_files
from gptpipe.weights.adapt import import_weights
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.huggingface import hf_config, hf_tensors
from tests.fixtures.place import GPTPIPE
from tests.weights.test_weights import ours, reference

TEXTS = [
    "def mean(values):\n    return sum(values)",
    "  two  spaces, émigré, 日本語 🙂\n",
    "<|endoftext|>x",
    "I'll don't 12,345",
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    model = ours(tied=False, qkv_bias=False, vocab=50257)
    state = {"tokens_seen": 1234, "dataset": "0123abcd"}
    training = tmp_path / "training"
    config = hf_config(model.config, "gpt2", 50256)
    url = write_checkpoint(str(training), 20, model=hf_tensors(model), config=config, state=state).url
    lines = [{"step": s, "validation/loss": 9.0 - s / 10, "validation/perplexity": 2.5} for s in (10, 20, 30)]
    (training / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return url


@pytest.mark.slow
def test_a_pipeline_runs_in_the_folder_offline(checkpoint: str, tmp_path: Path) -> None:
    out = export_hf(checkpoint, str(tmp_path / "out"))
    code = (
        "from transformers import pipeline; import sys\n"
        "print(pipeline('text-generation', sys.argv[1])('def mean', max_new_tokens=3)[0]['generated_text'])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def mean")


def test_the_tokenizer_gives_the_same_ids(checkpoint: str, tmp_path: Path) -> None:
    theirs = GPT2TokenizerFast.from_pretrained(export_hf(checkpoint, str(tmp_path / "out")))
    mine = get_tokenizer("gpt2")
    for text in TEXTS:
        assert theirs(text)["input_ids"] == mine.encode(text, special=True)
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token_id, theirs.model_max_length) == (50256, 12)


def test_the_vocabulary_is_the_published_one(gpt2_originals: Path) -> None:
    vocabulary, merges = gpt2_files()
    assert vocabulary == json.loads((gpt2_originals / "encoder.json").read_text("utf-8"))
    assert merges == (gpt2_originals / "vocab.bpe").read_text("utf-8")


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_are_the_same_in_every_type(checkpoint: str, tmp_path: Path, dtype: str) -> None:
    out = export_hf(checkpoint, str(tmp_path / "out"), dtype)
    theirs = GPT2LMHeadModel.from_pretrained(out)
    assert theirs.dtype == getattr(torch, dtype)
    mine = load(checkpoint).to(getattr(torch, dtype)).float()
    tokens = torch.arange(12)[None]
    assert (theirs.float()(tokens).logits - mine(tokens)).abs().max() < 1e-4
    assert (load(out)(tokens) - mine(tokens)).abs().max() < 1e-4  # and back in


@pytest.mark.parametrize("name", ["folder", "file.gguf"])
def test_of_two_that_export_to_one_place_one_is_refused(checkpoint: str, tmp_path: Path, name: str) -> None:
    words = [GPTPIPE, "export", checkpoint, "--out", str(tmp_path / name)]
    words += ["--format", "gguf"] if name.endswith("gguf") else []
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[1] for process in both}
    assert sorted(process.returncode for process in both) == [0, 2], said
    (refusal,) = said - {""}
    assert refusal.count("\n") == 1
    assert str(tmp_path / name) in refusal
    assert "is writing here" in refusal or "there already" in refusal
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_card_holds_what_is_known_up_to_that_step(checkpoint: str, tmp_path: Path) -> None:
    text = (Path(export_hf(checkpoint, str(tmp_path / "out"))) / "README.md").read_text()
    for part in ("20 steps", "1,234", "`0123abcd`", "7.0000 nats per token (at step 20)", "| 2.500 |", "of its own"):
        assert part in text
    reference(1, 2, 16, 8, 50257).save_pretrained(tmp_path / "hf")
    text = (Path(export_hf(str(tmp_path / "hf"), str(tmp_path / "again"))) / "README.md").read_text()
    assert "steps" not in text
    assert "| read from | hf |" in text


def test_nothing_that_is_there_is_written_over(checkpoint: str, tmp_path: Path) -> None:
    export_hf(checkpoint, str(tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="a model is there already"):
        export_hf(checkpoint, str(tmp_path / "out"), "bfloat16")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("replace_it", [False, True])
@pytest.mark.parametrize("names", [["thesis.txt"], ["README.md"], ["config.json"], ["model.safetensors", "train.py"]])
def test_a_folder_of_something_else_is_left_as_it_is(
    checkpoint: str, tmp_path: Path, names: list[str], replace_it: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text('{"model_type": "gpt2"}')
    said = (
        "a model is there already" if "config.json" in names and not replace_it else "the folder holds something else"
    )
    with pytest.raises(UserError, match=said):
        export_hf(checkpoint, str(out), replace=replace_it)
    assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(names, '{"model_type": "gpt2"}')


def test_a_checkpoint_is_never_written_over(checkpoint: str) -> None:
    before = {path.name: path.read_bytes() for path in Path(checkpoint).iterdir()}
    with pytest.raises(UserError, match="the folder holds something else"):
        export_hf(checkpoint, checkpoint, replace=True)
    assert {path.name: path.read_bytes() for path in Path(checkpoint).iterdir()} == before


def test_an_export_that_was_broken_off_is_made_whole(checkpoint: str, tmp_path: Path) -> None:
    whole = Path(export_hf(checkpoint, str(tmp_path / "whole")))
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"half of it")
    (out / ".tmp-gone-1-0a1b2c3d-config.json").write_bytes(b"")
    for name in ("vocab.json", "README.md"):
        (out / name).write_text("old")
    export_hf(checkpoint, str(out))
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_a_place_that_cannot_be_written_is_named_before_the_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        export_hf(str(tmp_path / "no-weights"), str(tmp_path / "file" / "out"))


def test_the_card_compares_with_what_training_started_from(checkpoint: str, tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 50257).save_pretrained(tmp_path / "before")
    first = evaluate_whole(str(tmp_path / "before"), text="one and one is two")
    second = evaluate_whole(checkpoint, text="one and one is two")
    against = Against(first.evaluation, compare_tallies(first.tally, second.tally))
    scores = replace(second.evaluation, against=against)
    kept = json.dumps(second.evaluation.as_dict())
    assert TypeAdapter(Evaluation).validate_python(json.loads(kept)) == second.evaluation
    text = (Path(export_hf(checkpoint, str(tmp_path / "out"), scores=scores)) / "README.md").read_text()
    assert f"Against the weights it started from, `before`: {against.comparison.sentence}." in text
    assert f"| {scores.cross_entropy:,.4f} | {first.evaluation.cross_entropy:,.4f} |" in text


def test_a_file_is_exported_too(tmp_path: Path) -> None:
    model = reference(1, 1, 64, 8, 50257)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    out = Path(export_hf(str(tmp_path / "model.pth"), str(tmp_path / "out")))
    assert "| read from | model.pth |" in (out / "README.md").read_text()
    with torch.no_grad():
        tokens = torch.arange(8)[None]
        assert (GPT2LMHeadModel.from_pretrained(out)(tokens).logits - model(tokens).logits).abs().max() < 1e-5


def test_what_does_not_fit_into_float16_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = reference(1, 1, 64, 8, 50257)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[3, 5] = -70000.0
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"mlp\.c_fc\.weight holds numbers too large for float16"):
        export_hf(str(tmp_path / "model.pth"), str(tmp_path / "out"), "float16")
    assert not list((tmp_path / "out").glob("*"))
    export_hf(str(tmp_path / "model.pth"), str(tmp_path / "out"), "bfloat16")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="too large for float16"):
        export_hf(str(tmp_path / "model.pth"), str(tmp_path / "out"), "float16", replace=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("what", ["import", "export"])
def test_what_a_killed_one_left_is_removed(what: str, checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "made"
    out.mkdir()
    with subprocess.Popen(["true"]) as gone:
        pass
    left = out / f".tmp-{socket.gethostname()}-{gone.pid}-0a1b2c3d-model.safetensors"
    left.write_bytes(b"half of it")
    if what == "export":
        (out / ".gptpipe-probe-0a1b2c3d").write_bytes(b"probe")
        export_hf(checkpoint, str(out))
    else:
        reference(1, 2, 16, 8, 50257).save_pretrained(tmp_path / "hf")
        import_weights(str(tmp_path / "hf"), str(out))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert list(out.iterdir())
