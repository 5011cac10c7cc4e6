"""Weights in and out against transformers' GPT-2, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gptpipe import GPT, ModelConfig, UserError, load
from gptpipe.weights.adapt import import_weights
from gptpipe.weights.checkpoint import newest_checkpoint, open_checkpoint
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.find import read_weights
from gptpipe.weights.huggingface import hf_config, hf_tensors


def random_shapes(count: int) -> list[tuple[int, int, int, int, int]]:
    """Layers, heads, width, context and vocabulary; one has GPT-2's."""
    draws = random.Random(20190214)
    found = [(3, 2, 64, 20, 50257)]
    while len(found) < count:
        heads, size = draws.randint(1, 6), draws.choice([1, 2, 3, 8, 16, 17, 32, 64])
        found.append((draws.randint(1, 5), heads, heads * size, draws.randint(1, 70), draws.randint(2, 3000)))
    return found


SHAPES = random_shapes(20)


def reference(n_layer: int, n_head: int, n_embd: int, context: int, vocab: int, tied: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(n_layer)
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=context,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # transformers starts biases at zero, which would hide their being mixed up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def ours(tied: bool, qkv_bias: bool, vocab: int = 300) -> GPT:
    torch.manual_seed(5)
    config = ModelConfig(
        vocab_size=vocab, context_length=12, n_layer=2, n_head=2, n_embd=32, tie_weights=tied, qkv_bias=qkv_bias
    )
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def write(model: GPT, folder: Path, step: int = 3) -> str:
    config = hf_config(model.config, "gpt2", model.config.vocab_size - 1)
    return write_checkpoint(str(folder), step, model=hf_tensors(model), config=config, state={}).url


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_hugging_face_folder(shape: tuple[int, ...], tied: bool, tmp_path: Path) -> None:
    model = reference(*shape, tied=tied)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, shape[4], (2, shape[3]))
    assert (load(str(tmp_path))(tokens) - model(tokens).logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_transformers_loads_our_checkpoint(tied: bool, qkv_bias: bool, tmp_path: Path) -> None:
    model = ours(tied, qkv_bias)
    url = write(model, tmp_path)
    theirs, info = GPT2LMHeadModel.from_pretrained(url, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.randint(0, 300, (2, 12))
    assert (theirs.eval()(tokens).logits - model(tokens)).abs().max() < 1e-4
    config = json.loads((Path(url) / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert config["gptpipe"]["qkv_bias"] is qkv_bias


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_our_checkpoint_comes_back_bit_for_bit(tied: bool, qkv_bias: bool, tmp_path: Path) -> None:
    model = ours(tied, qkv_bias)
    for weights in (write(model, tmp_path), str(tmp_path)):
        again = load(weights)
        assert again.config == model.config
        for (name, mine), (other, theirs) in zip(model.named_parameters(), again.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(mine, theirs)


@torch.no_grad()
def test_state_dicts_in_either_layout_without_a_config(tmp_path: Path) -> None:
    theirs = reference(2, 2, 128, 8, 77)
    tokens = torch.randint(0, 77, (1, 8))
    torch.save(theirs.state_dict(), tmp_path / "hf.pth")
    model = load(str(tmp_path / "hf.pth"))
    assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4
    torch.save(model.state_dict(), tmp_path / "ours.pt")
    assert torch.equal(load(str(tmp_path / "ours.pt"))(tokens), model(tokens))
    save_file(
        {k: v.contiguous().half() for k, v in theirs.transformer.state_dict().items()}, tmp_path / "half.safetensors"
    )
    assert (load(str(tmp_path / "half.safetensors"))(tokens) - theirs(tokens).logits).abs().max() < 2e-2


def test_import_writes_a_checkpoint_once(tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 50257).save_pretrained(tmp_path / "hf")
    first = import_weights(str(tmp_path / "hf"), str(tmp_path / "out"))
    written = (Path(first.url) / "model.safetensors").stat().st_mtime_ns
    assert import_weights(str(tmp_path / "hf"), str(tmp_path / "out")).url == first.url
    assert (Path(first.url) / "model.safetensors").stat().st_mtime_ns == written
    reference(2, 2, 16, 8, 50257).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="other weights are there already"):
        import_weights(str(tmp_path / "other"), str(tmp_path / "out"))


def test_vocabulary_that_is_not_the_tokenizers_is_refused(tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 300).save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="know 300 tokens, the tokenizer 'gpt2' has 50257"):
        import_weights(str(tmp_path / "hf"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_all_tensors_that_do_not_fit_are_named_at_once(tmp_path: Path) -> None:
    reference(2, 2, 16, 8, 99).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    tensors["transformer.wpe.weight"] = torch.zeros(9, 16)
    tensors["transformer.h.7.extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load(str(tmp_path))
    for part in ("h.1.mlp.c_fc.bias is missing", "wpe.weight is (9, 16) instead of (8, 16)", "h.7.extra is not part"):
        assert part in str(caught.value)


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    url = write(ours(True, True), tmp_path)
    file = Path(url) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load(str(tmp_path))


def test_a_folder_without_its_manifest_does_not_exist(tmp_path: Path) -> None:
    older = write(ours(True, True), tmp_path, step=1)
    newer = write(ours(True, True), tmp_path, step=2)
    assert read_weights(str(tmp_path)).url == newer
    (Path(newer) / "manifest.json").unlink()
    assert open_checkpoint(newer) is None
    assert read_weights(str(tmp_path)).url == older


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/gptpipe-evil",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"refused: it would import \S*system"):
        load(str(tmp_path / "evil.pth"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_with_what_it_wants(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weight": _Evil()}, protocol))
    with pytest.raises(UserError, match=r"refused: it would import \S*system"):
        load(str(tmp_path / "evil.pt"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_fc.weight", "h.0.ln_1.bias"])
def test_numbers_that_are_not_finite_are_found_wherever_weights_are_read(
    name: str, value: float, tmp_path: Path
) -> None:
    model = reference(1, 2, 16, 8, 50257)
    model.transformer.get_parameter(name).data.view(-1)[-3] = value
    model.save_pretrained(tmp_path / "in")
    message = f"{name} holds numbers that are not finite"
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "in"))
    with pytest.raises(UserError, match=message):
        import_weights(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out/**/*.*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "a llama model, not a GPT-2"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"n_head": 3}, "cannot be used: n_embd 16 is not a multiple of n_head 3: choose n_head from 1, 2, 4, 8, 16$"),
        ({"n_layer": "two"}, r"cannot be used: n_layer: input should be a valid integer.*, got 'two'$"),
        ({"gptpipe": {"qkv_bias": False}}, "is not zero, but the config says"),
    ],
)
def test_configs_that_cannot_be_used(change: dict[str, object], message: str, tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 99).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError) as caught:
        load(str(tmp_path))
    assert re.search(message, caught.value.message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{", "not JSON"),
        ("model.safetensors.index.json", "{}", "no map from tensors to files"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "no map from tensors to files"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', "no such file"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "names a file of another folder"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}', "names a file of another folder"),
    ],
)
def test_json_that_is_not_what_it_should_be(name: str, content: str, message: str, tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 99).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))


def test_weights_without_their_configuration(tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 99).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"model.safetensors without a config.json"):
        load(str(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_folder_may_be_called_like_a_file(tmp_path: Path, name: str) -> None:
    theirs = reference(1, 2, 16, 8, 50257)
    theirs.save_pretrained(tmp_path / name)
    tokens = torch.arange(8)[None]
    assert (load(str(tmp_path / name))(tokens) - theirs(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gone", "gone.safetensors", "gone.pth"])
def test_weights_that_are_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no (weights there|such file)"):
        load(str(tmp_path / name))


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 99).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load(str(tmp_path))


def test_weights_of_another_shape_start_no_training(tmp_path: Path) -> None:
    from gptpipe.dataset.dataset import Dataset
    from gptpipe.launch.training import check_start

    dataset = Dataset("here", {"tokenizer": {"name": "gpt2"}})
    model = ours(tied=True, qkv_bias=True)
    url = write(model, tmp_path)
    with pytest.raises(UserError) as caught:
        check_start(url, model.config.model_copy(update={"n_layer": 3, "qkv_bias": False}), dataset)
    assert "n_layer is 2 instead of 3, qkv_bias is True instead of False" in str(caught.value)
    assert "--set model.n_layer=2 --set model.qkv_bias=true" in str(caught.value)
    with_dropout = model.config.model_copy(update={"dropout": 0.5})
    assert check_start(url, with_dropout, dataset) == check_start(url, model.config, dataset)
    with pytest.raises(
        UserError, match="made with the tokenizer bpe-0123, the weights to start from use gpt2"
    ) as caught:
        check_start(url, model.config, Dataset("here", {"tokenizer": {"name": "bpe-0123"}}))
    assert "--tokenizer gpt2, or `gptpipe import` the weights with --tokenizer here" in str(caught.value)
    assert read_weights(url).build(with_dropout).drop.p == 0.5


def test_identity_of_weights_knows_the_number_of_heads(tmp_path: Path) -> None:
    url = write(ours(tied=True, qkv_bias=True), tmp_path)
    config = json.loads((Path(url) / "config.json").read_text())
    found = set()
    for heads in (2, 4):
        folder = tmp_path / str(heads)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, "n_head": heads}))
        (folder / "model.safetensors").write_bytes((Path(url) / "model.safetensors").read_bytes())
        found.add(read_weights(str(folder)).identity)
    assert len(found) == 2


@pytest.mark.parametrize(("rows", "said"), [(50000, 50304), (50257, 50300), (50304, 50257)])
def test_an_embedding_of_other_rows_than_the_config_says_is_refused(rows: int, said: int, tmp_path: Path) -> None:
    model = reference(1, 1, 16, 8, rows)
    model.save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "vocab_size": said}))
    with pytest.raises(UserError, match=rf"wte\.weight is \({rows}, 16\) instead of \({said}, 16\)"):
        import_weights(str(tmp_path / "hf"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_an_output_layer_of_its_own_is_kept_whatever_the_config_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference(2, 2, 16, 8, 77, tied=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    theirs, tokens = GPT2LMHeadModel.from_pretrained(tmp_path), torch.tensor([[5, 70, 3]])
    assert (load(str(tmp_path))(tokens) - theirs(tokens).logits).abs().max() < 1e-4
    assert "is not the embedding" in caplog.text


def test_tensors_of_every_form_are_read_or_refused(tmp_path: Path) -> None:
    whole = dict(reference(1, 1, 64, 8, 77).state_dict())
    name = "transformer.ln_f.bias"
    apart = torch.stack([whole[name], whole[name]], dim=1)[:, 0]
    assert not apart.is_contiguous()
    torch.save({**whole, name: apart}, tmp_path / "a.pth")
    assert torch.equal(load(str(tmp_path / "a.pth")).ln_f.bias, whole[name])
    for wrong in (whole[name].to_sparse(), whole[name].to("meta"), torch.nested.nested_tensor([whole[name]]), 3):
        torch.save({**whole, name: wrong}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"not a state dict of tensors|refused"):
            load(str(tmp_path / "a.pth"))
    torch.save({**whole, name: whole[name].to(torch.float8_e4m3fn)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"ln_f\.bias is torch\.float8_e4m3fn"):
        load(str(tmp_path / "a.pth"))
    torch.save({1: whole[name]}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="not a state dict of tensors"):
        load(str(tmp_path / "a.pth"))


def test_a_torch_file_that_is_damaged_anywhere_is_one_line(tmp_path: Path) -> None:
    torch.save(dict(reference(1, 1, 64, 8, 77).state_dict()), tmp_path / "whole.pth")
    data, draws = (tmp_path / "whole.pth").read_bytes(), random.Random(1)
    said = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draws.randint(1, 8)):
            damaged[draws.choice([draws.randrange(3000), draws.randrange(len(data))])] = draws.randrange(256)
        (tmp_path / "a.pth").write_bytes(damaged)
        try:
            load(str(tmp_path / "a.pth"))
        except UserError as error:
            said.append(error.message)
    assert len(said) > 50
    assert not [message for message in said if "\n" in message]


def test_a_manifest_that_is_damaged_is_named(tmp_path: Path) -> None:
    reference(1, 2, 16, 8, 50257).save_pretrained(tmp_path / "hf")
    checkpoint = Path(import_weights(str(tmp_path / "hf"), str(tmp_path / "out")).url)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for change in ({"step": "x"}, {"files": None}, {"files": [1]}):
        (checkpoint / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            load(str(checkpoint))


def test_a_byte_of_a_manifest_that_has_changed_is_noticed(tmp_path: Path) -> None:
    older, newer = (write(ours(tied=True, qkv_bias=True), tmp_path, step) for step in (3, 5))
    file, draw = Path(newer) / "manifest.json", random.Random(4)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(7)]) + content[place + 1 :])
        newest = newest_checkpoint(str(tmp_path))
        assert newest is not None
        if newest.url == newer:  # white space between two values says nothing
            assert json.loads(file.read_bytes()) == json.loads(content)
        else:
            assert newest.url == older


def test_gguf_and_names_too_long_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="GGUF is written, not read"):
        load(str(tmp_path / "a.gguf"))
    with pytest.raises(UserError, match="too long"):
        load("a" * 5000)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"files": {"model.safetensors": 3}, "step": 5}', '{"files": [], "step": 5}']
)
def test_a_checkpoint_whose_manifest_is_damaged_is_passed_over_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    older, newer = (write(ours(tied=True, qkv_bias=True), tmp_path, step) for step in (3, 5))
    (Path(newer) / "manifest.json").write_text(content)
    newest = newest_checkpoint(str(tmp_path))
    assert newest is not None
    assert newest.url == older
    assert f"{newer}" in caplog.text
    assert "the checkpoint is passed over" in caplog.text
    with pytest.raises(UserError):  # whoever names it means it
        load(newer)
