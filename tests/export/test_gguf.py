"""GGUF: what llama.cpp makes of the file, and what its reader and `transformers` find in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
import torch
import xllamacpp
from transformers import GPT2LMHeadModel

from gptpipe import GPT, ModelConfig, UserError, load, storage
from gptpipe.config import SampleConfig
from gptpipe.export.gguf import export_gguf
from gptpipe.generation.generate import generate_ids
from gptpipe.tokenizer import get_tokenizer
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.huggingface import hf_config, hf_tensors
from tests.export.test_export import TEXTS
from tests.fixtures.qwen3 import ours, write
from tests.tokenizer.test_huggingface import both, write_model
from tests.weights.test_weights import reference

GREEDY = SampleConfig(temperature=0, top_k=0, max_new_tokens=30)
TOKENS = torch.arange(1000, 1012)[None]


def checkpoint(folder: Path, *, width: int = 64, tied: bool = True, qkv_bias: bool = True) -> str:
    torch.manual_seed(5)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=width, context_length=16, tie_weights=tied, qkv_bias=qkv_bias))
    with torch.no_grad():
        for each in model.parameters():
            each.normal_(std=0.2)
    config = hf_config(model.config, "gpt2", 50256)
    return write_checkpoint(str(folder / "training"), 1, model=hf_tensors(model), config=config, state={}).url


class LlamaCpp:
    """llama.cpp's own server, in this process, with a file."""

    def __init__(self, path: str) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = path
        parameters.n_ctx = 256
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.verbosity = -1
        self.server = xllamacpp.Server(parameters)

    def ask(self, what: str, given: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.post(f"{self.server.listening_address}/{what}", json=given, timeout=60).json()
        return answer

    def log_probabilities(self, prompt: list[int]) -> np.ndarray:
        """Of every token after a prompt, shape (V,)."""
        given = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 50257, "cache_prompt": False}
        (place,) = self.ask("completion", given)["completion_probabilities"]
        found = np.full(50257, np.nan)
        for each in place["top_logprobs"]:
            found[each["id"]] = each["logprob"]
        return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "off", "tied", "qkv_bias"),
    # llama.cpp has its keys, values and the GELU's table in half precision; q8_0 rounds inputs too
    [
        ("float32", 1e-3, True, True),
        ("float32", 1e-3, False, False),
        pytest.param("float16", 3e-3, True, True, marks=pytest.mark.slow),
        pytest.param("bfloat16", 3e-2, True, True, marks=pytest.mark.slow),
        pytest.param("bfloat16", 3e-2, False, False, marks=pytest.mark.slow),
        ("q8_0", 1e-1, False, False),
    ],
)
def test_llama_cpp_gives_the_same_probabilities(
    tmp_path: Path, dtype: str, off: float, tied: bool, qkv_bias: bool
) -> None:
    weights = checkpoint(tmp_path, tied=tied, qkv_bias=qkv_bias)
    theirs = LlamaCpp(export_gguf(weights, str(tmp_path / "out" / "small.gguf"), dtype))
    for prompt in ([1000], TOKENS[0].tolist()):
        mine = load(weights)(torch.tensor([prompt]))[0, -1].log_softmax(0).numpy()
        assert np.abs(theirs.log_probabilities(prompt) - mine).max() < off
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.gguf"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ({"n_kv_head": 2, "head_size": 32, "tie_weights": False}, "float32"),
        pytest.param({}, "float32", marks=pytest.mark.slow),
        pytest.param({}, "q8_0", marks=pytest.mark.slow),
    ],
)
def test_llama_cpp_runs_a_qwen3(tmp_path: Path, shape: dict[str, Any], dtype: str) -> None:
    model = ours(vocabulary=50257, n_embd=64, n_layer=2, **shape)
    theirs = LlamaCpp(export_gguf(write(model, tmp_path), str(tmp_path / "out" / "small.gguf"), dtype))
    for prompt in ([1000], TOKENS[0].tolist()):
        mine = model(torch.tensor([prompt]))[0, -1].log_softmax(0).numpy()
        assert np.abs(theirs.log_probabilities(prompt) - mine).max() < (5e-3 if dtype == "float32" else 2e-1)
    if dtype == "float32":
        given = {"prompt": TOKENS[0].tolist(), "n_predict": 30, "temperature": 0, "return_tokens": True}
        answer = theirs.ask("completion", given)
        assert answer["tokens"] == generate_ids(model, TOKENS.tolist(), GREEDY)[0]


def test_llama_cpp_splits_texts_as_we_do(tmp_path: Path) -> None:
    theirs = LlamaCpp(export_gguf(checkpoint(tmp_path), str(tmp_path / "small.gguf")))
    mine = get_tokenizer("gpt2")
    for text in TEXTS:
        tokens = mine.encode(text, special=True)
        assert theirs.ask("tokenize", {"content": text, "parse_special": True}) == {"tokens": tokens}
        assert theirs.ask("detokenize", {"tokens": tokens}) == {"content": text}


@pytest.mark.parametrize("case", ["marks and words added", "Qwen's"])
def test_llama_cpp_splits_texts_by_a_tokenizer_of_another_kind(tmp_path: Path, case: str) -> None:
    tokenizer, _ = both(tmp_path / "in", case)
    write_model(tmp_path / "in", tokenizer.vocab_size)
    file = export_gguf(str(tmp_path / "in"), str(tmp_path / "model.gguf"))
    theirs = LlamaCpp(file)
    mark, other = [token.text for token in tokenizer.added if token.special][:2]
    for text in (
        "wir sind hier, und dort waren wir 1999",
        f"{mark}Größe{other} die Straße",
        "日本語 🙂",
        "if x:\r\n\n\treturn 'LL don't\n  ",
    ):
        asked = {"content": text, "parse_special": True}
        assert theirs.ask("tokenize", asked) == {"tokens": tokenizer.encode(text)}


@pytest.mark.slow  # it reads the vocabulary token by token
@torch.no_grad()
@pytest.mark.parametrize(("tied", "qkv_bias"), [(True, True), (False, False)])
def test_transformers_reads_the_same_logits_out_of_it(tmp_path: Path, tied: bool, qkv_bias: bool) -> None:
    weights = checkpoint(tmp_path, tied=tied, qkv_bias=qkv_bias)
    out = Path(export_gguf(weights, str(tmp_path / "out" / "small.gguf")))
    # transformers takes the file's context for `n_ctx` alone, and makes 1,024 position embeddings unless it is told
    theirs = GPT2LMHeadModel.from_pretrained(out.parent, gguf_file=out.name, n_positions=16).eval()
    assert theirs.config.tie_word_embeddings == tied
    assert (theirs(TOKENS).logits - load(weights)(TOKENS)).abs().max() < 1e-4


@pytest.mark.slow
def test_what_the_file_says_of_the_model(tmp_path: Path) -> None:
    fields = gguf.GGUFReader(export_gguf(checkpoint(tmp_path), str(tmp_path / "small.gguf"), "bfloat16")).fields
    said = {
        "general.architecture": "gpt2",
        "general.name": "small",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "gpt2.context_length": 16,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 50256,
    }
    assert {name: fields[name].contents() for name in said} == said
    assert fields["gpt2.attention.layer_norm_epsilon"].contents() == pytest.approx(1e-5)
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert (len(kinds), kinds.index(gguf.TokenType.CONTROL)) == (50257, 50256)


@pytest.mark.parametrize(
    ("dtype", "width", "kind", "tolerance"),
    [
        pytest.param("float32", 64, "F32", 0, marks=pytest.mark.slow),
        pytest.param("float16", 64, "F16", 2**-11, marks=pytest.mark.slow),
        pytest.param("bfloat16", 64, "BF16", 2**-8, marks=pytest.mark.slow),
        ("q8_0", 64, "Q8_0", 1 / 254),
        pytest.param("q8_0", 24, "F16", 2**-11, marks=pytest.mark.slow),  # 32 does not divide its rows
    ],
)
def test_matrices_in_the_type_and_the_rest_in_float32(
    tmp_path: Path, dtype: str, width: int, kind: str, tolerance: float
) -> None:
    weights = checkpoint(tmp_path, width=width)
    file = gguf.GGUFReader(export_gguf(weights, str(tmp_path / "small.gguf"), dtype))
    tensors = {each.name: each for each in file.tensors}
    mine = load(weights).state_dict()
    for theirs, own, expected in (
        ("blk.1.attn_qkv.weight", "h.1.attn.c_attn.weight", kind),
        ("token_embd.weight", "wte.weight", kind),
        ("position_embd.weight", "wpe.weight", "F32"),
        ("blk.0.ffn_norm.bias", "h.0.ln_2.bias", "F32"),
    ):
        tensor, wanted = tensors[theirs], mine[own].numpy()
        assert tensor.tensor_type.name == expected
        read = gguf.dequantize(tensor.data, tensor.tensor_type)
        bound = tolerance * np.abs(wanted).max() if expected == kind else 0  # of eight bits: of its block's largest
        assert np.abs(read - wanted).max() <= bound, theirs
    assert len(tensors) == 2 + 2 * 12 + 2


def test_to_an_object_store(tmp_path: Path, s3_storage: str) -> None:
    weights = checkpoint(tmp_path)
    local = export_gguf(weights, str(tmp_path / "small.gguf"))
    stored = export_gguf(weights, f"{s3_storage}/models/small.gguf")
    assert storage.read_bytes(stored) == Path(local).read_bytes()


def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path)
    out = tmp_path / "out" / "small.gguf"
    with pytest.raises(UserError, match="GGUF is one file"):
        export_gguf(weights, str(tmp_path / "out"))
    export_gguf(weights, str(out))
    before = out.read_bytes()
    with pytest.raises(UserError, match="a file is there already"):
        export_gguf(weights, str(out), "q8_0")
    assert out.read_bytes() == before
    next(Path(weights).glob("model.safetensors")).write_bytes(b"cut")
    with pytest.raises(UserError):
        export_gguf(weights, str(tmp_path / "out" / "other.gguf"))
    assert [path.name for path in out.parent.iterdir()] == ["small.gguf"]


def test_what_does_not_fit_into_float16_is_refused(tmp_path: Path) -> None:
    model = reference(1, 1, 64, 8, 50257)
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight[3, 5] = 1e5
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"attn\.c_proj\.weight holds numbers too large for float16"):
        export_gguf(str(tmp_path / "model.pth"), str(tmp_path / "a.gguf"), "float16")
    assert not (tmp_path / "a.gguf").exists()
