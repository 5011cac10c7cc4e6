"""Weights in every layout that people have: full logits against transformers' GPT-2, one identity for all."""

from __future__ import annotations

import http.server
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from gptpipe import UserError, load, storage
from gptpipe.storage.fetch import local_copy
from gptpipe.weights.adapt import import_weights
from gptpipe.weights.find import read_weights
from gptpipe.weights.tensors import open_safetensors
from tests.fixtures.datasets import serving
from tests.weights.test_weights import reference

TOKENS = torch.tensor([[5, 70, 3, 0, 12, 9]])
_LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@torch.no_grad()
def logits(model: GPT2LMHeadModel) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


@torch.no_grad()
def differ(weights: Path | str, model: GPT2LMHeadModel) -> float:
    """The largest difference of a logit."""
    return float((load(str(weights))(TOKENS) - logits(model)).abs().max())


def without_biases(model: GPT2LMHeadModel, *names: str) -> GPT2LMHeadModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names or (".bias",)):
                parameter.zero_()
    return model


def as_nanogpt(model: GPT2LMHeadModel, *, bias: bool, padding: int = 0) -> dict[str, Any]:
    """What nanoGPT's train.py saves, by its own names and layout: linear layers (out, in), compiled."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name.endswith(".bias") and not bias:
            continue
        value = value.t() if name.endswith(_LINEAR) else value
        if padding and name in ("transformer.wte.weight", "lm_head.weight"):
            value = torch.cat([value, torch.randn(padding, value.shape[1])])
        tensors[f"_orig_mod.{name}"] = value.clone()
    c = model.config
    arguments = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "block_size": c.n_positions}
    arguments |= {"bias": bias, "vocab_size": c.vocab_size + padding, "dropout": 0.0}
    return {"model": tensors, "model_args": arguments, "iter_num": 7, "optimizer": {"state": {}}, "config": {"x": 1}}


def as_book(model: GPT2LMHeadModel, *, qkv_bias: bool, tied: bool = True) -> dict[str, Tensor]:
    """The state dict of the book's GPTModel: query, key and value apart, an output layer of its own, masks."""
    theirs = model.state_dict()
    found = {
        "tok_emb.weight": theirs["transformer.wte.weight"],
        "pos_emb.weight": theirs["transformer.wpe.weight"],
        "final_norm.scale": theirs["transformer.ln_f.weight"],
        "final_norm.shift": theirs["transformer.ln_f.bias"],
        "out_head.weight": theirs["lm_head.weight"],
    }
    for layer in range(model.config.n_layer):
        for kind in ("weight", "bias"):
            joined = theirs[f"transformer.h.{layer}.attn.c_attn.{kind}"]
            for part, value in zip(("query", "key", "value"), joined.chunk(3, dim=-1), strict=True):
                if kind == "weight" or qkv_bias:
                    found[f"trf_blocks.{layer}.att.W_{part}.{kind}"] = value.t() if kind == "weight" else value
        for short, name in (
            ("attn.c_proj", "att.out_proj"),
            ("mlp.c_fc", "ff.layers.0"),
            ("mlp.c_proj", "ff.layers.2"),
        ):
            found[f"trf_blocks.{layer}.{name}.weight"] = theirs[f"transformer.h.{layer}.{short}.weight"].t()
            found[f"trf_blocks.{layer}.{name}.bias"] = theirs[f"transformer.h.{layer}.{short}.bias"]
        for number in (1, 2):
            for kind, name in (("weight", "scale"), ("bias", "shift")):
                found[f"trf_blocks.{layer}.norm{number}.{name}"] = theirs[f"transformer.h.{layer}.ln_{number}.{kind}"]
        size = model.config.n_positions
        found[f"trf_blocks.{layer}.att.mask"] = torch.triu(torch.ones(size, size), diagonal=1)
    return {name: value.contiguous() for name, value in found.items()}


def as_llmc(model: GPT2LMHeadModel, *, version: int, padded: int) -> bytes:
    """What llm.c's train_gpt2.py and train_gpt2.cu write: a header, then each tensor of all blocks, (out, in)."""
    c, theirs = model.config, model.transformer.state_dict()
    header = [20240326, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded]
    rest = torch.zeros(padded - c.vocab_size, c.n_embd)
    tensors = [torch.cat([theirs["wte.weight"], rest]), theirs["wpe.weight"]]
    for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for kind in ("weight", "bias"):
            blocks = [theirs[f"h.{layer}.{name}.{kind}"] for layer in range(c.n_layer)]
            tensors += [block.t() for block in blocks]
    tensors += [theirs["ln_f.weight"], theirs["ln_f.bias"]]
    kind = torch.float32 if version == 3 else torch.bfloat16
    numbers = b"".join(each.to(kind).contiguous().view(torch.uint8).numpy().tobytes() for each in tensors)
    return struct.pack("<256i", *header, *[0] * (256 - len(header))) + numbers


@pytest.mark.parametrize("version", [3, 5])
def test_llmc(version: int, tmp_path: Path) -> None:
    model = reference(3, 4, 32, 8, 77)
    (tmp_path / "model_00001000.bin").write_bytes(as_llmc(model, version=version, padded=128))
    if version == 5:
        model = model.bfloat16().float()
    assert differ(tmp_path / "model_00001000.bin", model) < 1e-4
    config = read_weights(str(tmp_path / "model_00001000.bin")).config
    assert (config.n_head, config.context_length, config.vocab_size, config.tie_weights) == (4, 8, 77, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:500], "cut off: its header has 500 of 1,024 bytes"),
        (lambda data: data[:-1], "its header asks for"),
        (lambda data: data + b"0", "its header asks for"),
        (lambda data: data[:4] + struct.pack("<i", 1) + data[8:], "version 1 of llm.c's files"),
        (lambda data: data[:16] + struct.pack("<i", -1) + data[20:], "no shape of a GPT-2"),
        (lambda data: data[:16] + struct.pack("<i", 2**31 - 1) + data[20:], "its header asks for"),
        (lambda data: data[:20] + struct.pack("<i", 3) + data[24:], "n_embd"),
    ],
)
def test_a_file_of_llmc_that_is_damaged(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    data = as_llmc(reference(2, 4, 32, 8, 77), version=3, padded=128)
    (tmp_path / "model.bin").write_bytes(change(data))
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(bias: bool, tmp_path: Path) -> None:
    model = reference(2, 4, 32, 8, 77)
    if not bias:
        without_biases(model)
    torch.save(as_nanogpt(model, bias=bias), tmp_path / "ckpt.pt")
    assert differ(tmp_path / "ckpt.pt", model) < 1e-4
    config = read_weights(str(tmp_path / "ckpt.pt")).config
    assert (config.n_head, config.context_length, config.qkv_bias, config.tie_weights) == (4, 8, bias, True)


def test_nanogpts_padded_vocabulary_is_cut(tmp_path: Path) -> None:
    model = reference(1, 2, 16, 8, 50257)
    torch.save(as_nanogpt(model, bias=True, padding=47), tmp_path / "ckpt.pt")
    assert differ(tmp_path / "ckpt.pt", model) < 1e-4
    assert import_weights(str(tmp_path / "ckpt.pt"), str(tmp_path / "out")).json("config.json")["vocab_size"] == 50257


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("inside", [None, "model_state_dict"])
def test_the_book(qkv_bias: bool, inside: str | None, tmp_path: Path) -> None:
    model = reference(2, 2, 128, 8, 77)
    if not qkv_bias:
        without_biases(model, "c_attn.bias")
    found = as_book(model, qkv_bias=qkv_bias)
    torch.save({inside: found, "optimizer_state_dict": {}} if inside else found, tmp_path / "model.pth")
    assert differ(tmp_path / "model.pth", model) < 1e-4
    assert read_weights(str(tmp_path / "model.pth")).config.qkv_bias is qkv_bias


def test_the_books_output_layer_may_be_its_own(tmp_path: Path) -> None:
    model = reference(1, 1, 64, 8, 77, tied=False)
    torch.save(as_book(model, qkv_bias=True), tmp_path / "model.pth")
    assert read_weights(str(tmp_path / "model.pth")).config.tie_weights is False
    assert differ(tmp_path / "model.pth", model) < 1e-4


@pytest.mark.parametrize("layout", ["book", "nanogpt", "hf"])
def test_a_bias_that_is_missing_among_others_is_not_taken_for_zero(layout: str, tmp_path: Path) -> None:
    model = reference(2, 2, 128, 8, 77)
    given = {
        "book": lambda: as_book(model, qkv_bias=True),
        "nanogpt": lambda: as_nanogpt(model, bias=True)["model"],
        "hf": lambda: dict(model.state_dict()),
    }[layout]()
    gone = {"book": "final_norm.shift", "nanogpt": "_orig_mod.transformer.ln_f.bias", "hf": "transformer.ln_f.bias"}
    del given[gone[layout]]
    arguments = as_nanogpt(model, bias=True)["model_args"]
    torch.save({"model": given, "model_args": arguments} if layout == "nanogpt" else given, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"ln_f\.bias is missing"):
        load(str(tmp_path / "a.pth"))


def test_a_tensor_that_is_there_twice_is_named(tmp_path: Path) -> None:
    found = dict(reference(1, 1, 64, 8, 77).state_dict())
    torch.save({**found, "wpe.weight": found["transformer.wpe.weight"] + 1}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"wpe\.weight is there twice"):
        load(str(tmp_path / "a.pth"))


def test_a_projection_that_is_missing_is_named(tmp_path: Path) -> None:
    found = as_book(reference(2, 1, 64, 8, 77), qkv_bias=True)
    del found["trf_blocks.1.att.W_key.weight"]
    torch.save(found, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"h\.1\.attn\.c_attn\.weight: no W_key beside the others"):
        load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hugging_face_in_several_files(dtype: torch.dtype, tmp_path: Path) -> None:
    model = reference(3, 2, 64, 8, 77).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-0*-of-0*.safetensors"))) > 2
    assert differ(tmp_path, model.float()) < 1e-4  # the halves themselves, computed in float32


@pytest.mark.parametrize("parts", [1, 2])
def test_hugging_face_in_torchs_format(parts: int, tmp_path: Path) -> None:
    model = reference(2, 2, 32, 8, 77)
    model.config.save_pretrained(tmp_path)
    tensors = list(model.transformer.state_dict().items())  # old files have no prefix
    if parts == 1:
        torch.save(dict(tensors), tmp_path / "pytorch_model.bin")
    else:
        names = {}
        for number in range(2):
            file = f"pytorch_model-0000{number + 1}-of-00002.bin"
            torch.save(dict(tensors[number::2]), tmp_path / file)
            names |= {name: file for name, _ in tensors[number::2]}
        storage.write_json(str(tmp_path / "pytorch_model.bin.index.json"), {"weight_map": names})
    assert differ(tmp_path, model) < 1e-4


def test_the_identity_is_that_of_the_weights_whatever_they_lie_in(tmp_path: Path) -> None:
    model = reference(2, 2, 128, 8, 50257)
    model.save_pretrained(tmp_path / "hf")
    torch.save(as_book(model, qkv_bias=True), tmp_path / "book.pth")
    torch.save(as_nanogpt(model, bias=True), tmp_path / "nano.pt")
    checkpoint = import_weights(str(tmp_path / "hf"), str(tmp_path / "out")).url
    (tmp_path / "llmc.bin").write_bytes(as_llmc(model, version=3, padded=50304))
    places = [tmp_path / "hf", tmp_path / "book.pth", tmp_path / "nano.pt", tmp_path / "llmc.bin", checkpoint]
    assert len({read_weights(str(place)).identity for place in places}) == 1
    assert import_weights(str(tmp_path / "book.pth"), str(tmp_path / "out")).url == checkpoint  # there already


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "a Llama"),
        ("transformer.h.0.attn.q_proj.weight", "a GPT-J"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "a GPT-NeoX"),
        ("conv1.weight", "another model"),
    ],
)
def test_another_architecture_is_named(name: str, kind: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(4, 4)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"{kind}, not a GPT-2") as refused:
        load(str(tmp_path / "other.pth"))
    assert "nanoGPT" in refused.value.hint


class Breaking(http.server.BaseHTTPRequestHandler):
    """Serves a file in ranges and breaks off in the middle of every second answer."""

    content = b""
    asked: list[str]

    def do_HEAD(self) -> None:
        self._head(200, len(self.content))

    def do_GET(self) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(self.content)), len(self.content) - 1)
        part = self.content[begin : end + 1]
        self.asked.append(f"{begin}-{end}")
        self._head(206, len(part), f"bytes {begin}-{end}/{len(self.content)}")
        self.wfile.write(part if len(self.asked) % 2 else part[: len(part) // 2])

    def _head(self, status: int, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_that_breaks_goes_on_and_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = reference(1, 4, 256, 64, 40000)
    model.save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    asked: list[str] = []
    with serving(type("Handler", (Breaking,), {"content": content, "asked": asked})) as address:
        with local_copy(f"{address}/gpt2.safetensors") as path:
            assert path.read_bytes() == content
        assert len(asked) > 1
        assert asked[-1].split("-")[0] != "0"  # the last range did not begin at the beginning
        before = len(asked)
        assert len(open_safetensors(path, "again")) == len(model.transformer.state_dict())
        with local_copy(f"{address}/gpt2.safetensors") as again:
            assert again == path
        assert len(asked) == before
        for damaged in (bytes(len(content)), content[:-1], content + b"x", b""):
            path.write_bytes(damaged)
            before = len(asked)
            with local_copy(f"{address}/gpt2.safetensors") as again:
                assert again.read_bytes() == content
            assert len(asked) > before
            assert str(path) in caplog.text
            caplog.clear()
        (path.parent / ".checksum").write_bytes(b"\xff\xfe")
        with local_copy(f"{address}/gpt2.safetensors") as again:
            assert again.read_bytes() == content
        with (
            pytest.raises(UserError, match="damaged"),
            local_copy(f"{address}/other.safetensors", sha256="0" * 64),
        ):
            pass


def test_a_server_that_is_not_there_is_no_file_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match="the server did not answer") as caught:
        load(f"{address}/gpt2.safetensors")
    assert "check the URL" in caught.value.hint
    with serving(http.server.SimpleHTTPRequestHandler) as address, pytest.raises(UserError, match="no such file"):
        load(f"{address}/gpt2.safetensors")


def test_weights_in_object_storage(s3_storage: str, tmp_path: Path) -> None:
    model = reference(2, 4, 32, 8, 50257)
    model.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    for file in (tmp_path / "hf").iterdir():
        storage.put_file(file, f"{s3_storage}/hf/{file.name}")
    assert differ(f"{s3_storage}/hf", model) < 1e-4
    checkpoint = import_weights(f"{s3_storage}/hf", f"{s3_storage}/out").url
    assert differ(checkpoint, model) < 1e-4
    content = bytearray(storage.read_bytes(f"{checkpoint}/model.safetensors"))
    content[-1] ^= 1
    storage.write_bytes(f"{checkpoint}/model.safetensors", bytes(content))
    with pytest.raises(UserError, match="damaged"):
        load(checkpoint)
