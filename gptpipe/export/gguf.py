"""Weights to one GGUF file with the tokenizer inside, which llama.cpp and the tools built on it run.

Names, layout and what stays in float32 are those of llama.cpp's own conversion; the file is written by its
`gguf` package (`pip install 'gptpipe[gguf]'`). A model without biases of query, key and value gets zeros there, as the
format has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import gguf
import numpy as np

from gptpipe import storage
from gptpipe.config import ModelConfig
from gptpipe.errors import UserError
from gptpipe.export.folder import alone
from gptpipe.tokenizer import QWEN_PATTERN, Tokenizer, get_tokenizer
from gptpipe.tokenizer.huggingface import vocabulary_of
from gptpipe.weights.find import read_weights
from gptpipe.weights.huggingface import hf_stored
from gptpipe.weights.tensors import check_float16
from gptpipe.weights.weights import Weights, check_vocabulary

TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
"""By name: ggml's type of the matrices, and what the file says that it holds."""


def export_gguf(weights: str, out: str, dtype: str = "float32") -> str:
    """Write WEIGHTS as a GGUF file, which appears whole or not at all; one tensor at a time is in memory.

    Args:
        out: a path or URL that ends in `.gguf`, where nothing is yet.
        dtype: of the matrices, one of TYPES; vectors and position embeddings stay float32. `q8_0` is eight bits per
            number with a scale for every 32; a matrix whose rows 32 does not divide is float16 then.

    Returns:
        Its URL.

    Raises:
        UserError: the weights cannot be read or use a tokenizer without merges, the name does not end in `.gguf`,
            or a file is there.
    """
    out = storage.normalize(out)
    if not out.endswith(".gguf"):
        raise UserError("GGUF is one file", where=out, hint="give --out a name that ends in .gguf")
    storage.check_writable(storage.parent(out))
    with alone(out):
        return _export(weights, out, dtype)


def _export(weights: str, out: str, dtype: str) -> str:
    if storage.exists(out):
        raise UserError("a file is there already", where=out, hint="choose another --out")
    storage.sweep_temporaries(storage.parent(out), below=False)
    read = read_weights(weights)
    tokenizer = get_tokenizer(read.tokenizer)
    check_vocabulary(read.config, tokenizer.vocab_size, tokenizer.name, read.url)
    vocabulary = vocabulary_of(tokenizer)
    name = out.rsplit("/", 1)[1].removesuffix(".gguf")
    with storage.scratch_folder(storage.parent(out)) as scratch:
        path = scratch / "model.gguf"
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(read.config)])
        try:
            _describe(writer, read.config, name, dtype)
            _add_tokenizer(writer, tokenizer, *vocabulary)
            _write_tensors(writer, read, dtype)
        finally:
            writer.close()
        storage.move_file(path, out)
    return out


def _architecture(config: ModelConfig) -> gguf.MODEL_ARCH:
    return gguf.MODEL_ARCH.GPT2 if config.architecture == "gpt2" else gguf.MODEL_ARCH.QWEN3


def _describe(writer: gguf.GGUFWriter, config: ModelConfig, name: str, dtype: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    if config.architecture == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.kv_heads)
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_rope_freq_base(config.rope_base)
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, ids: dict[str, int], merges: list[str]) -> None:
    tokens = [f"[unused{number}]" for number in range(tokenizer.vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    for token, number in ids.items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for added in tokenizer.added:
        kinds[added.id] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    kinds[tokenizer.end_of_text] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("qwen2" if tokenizer.pattern == QWEN_PATTERN else "gpt-2")  # how a text is split before it
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)


def _write_tensors(writer: gguf.GGUFWriter, weights: Weights, dtype: str) -> None:
    names = gguf.get_tensor_name_map(_architecture(weights.config), weights.config.n_layer)
    stored = hf_stored(weights.config, weights.tensors, turned=False)  # the table has transformers' names
    kinds = {name: _kind(name, each.shape, dtype) for name, each in stored.items()}
    for name, each in stored.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        size = math.prod(gguf.quant_shape_to_byte_shape(each.shape, kinds[name]))
        writer.add_tensor_info(theirs, each.shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, each in stored.items():
        tensor = each.read().float()
        if kinds[name] == gguf.GGMLQuantizationType.F16:
            check_float16(name, tensor, weights.url)
        writer.write_tensor_data(gguf.quantize(tensor.contiguous().numpy(), kinds[name]))


def _kind(name: str, shape: Sequence[int], dtype: str) -> gguf.GGMLQuantizationType:
    """ggml's type of a tensor."""
    if len(shape) == 1 or name == "transformer.wpe.weight":
        return gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType[TYPES[dtype][0]]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16
