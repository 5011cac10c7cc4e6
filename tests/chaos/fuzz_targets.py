"""What reads that which others wrote: each a function of bytes, with good inputs to begin from."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from gptpipe.config import DataConfig, ModelConfig, load_config
from gptpipe.corpus.build import tokenize
from gptpipe.corpus.json_text import kind_of_json
from gptpipe.corpus.jsonl import read_jsonl
from gptpipe.corpus.options import ReadOptions
from gptpipe.corpus.parquet import read_parquet
from gptpipe.corpus.readers import open_whole
from gptpipe.corpus.sources import Source, list_sources
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.left_out import LeftOut
from gptpipe.dataset.rows import DAMAGED, ShardReader
from gptpipe.errors import UserError
from gptpipe.evaluation.tasks import read_questions
from gptpipe.launch.job import Outcome
from gptpipe.model.gpt import GPT
from gptpipe.sweep.space import read_space
from gptpipe.tokenizer.huggingface import read_files
from gptpipe.weights.checkpoint import open_checkpoint
from gptpipe.weights.commit import write_checkpoint
from gptpipe.weights.find import read_weights
from gptpipe.weights.huggingface import hf_config, hf_tensors
from gptpipe.weights.tensors import open_safetensors, open_torch
from gptpipe.wording import first_line
from tests.tokenizer.test_huggingface import as_whole_file


class Targets:
    """What reads, by name: a function of bytes, and good inputs for it.

    Args:
        folder: for files, best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._corpus = folder / "corpus"
        self._corpus.mkdir()
        for number in range(12):
            (self._corpus / f"{number}.txt").write_text(f"def f{number}(x):\n    return x\n" * (number + 1))
        config = DataConfig(corpus=[str(self._corpus)], workers=1)  # type: ignore[list-item]
        self._dataset = Path(tokenize(config, str(folder / "datasets")).dataset)
        self._training = folder / "training"
        self._write_checkpoint()

    def all(self) -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
        manifest, index = self._dataset / "manifest.json", self._dataset / "shards.parquet"
        shard = next(self._dataset.glob("train/*.parquet"))
        checkpoint = self._training / "step-00000001"
        rows = b'{"text": "a b"}\n{"text": "caf\xc3\xa9", "id": 3}\n\n{"text": "\\ud83d\\ude42"}\n'
        return {
            "configuration": (self._in_file("c.yaml", lambda file: load_config(file=file)), [
                b"model: {n_layer: 2, n_embd: 64, n_head: 2}\ntrain:\n  steps: 30\n  learning_rate: 1e-3\n",
                b"data:\n  corpus:\n    - {url: stdlib:, name: code}\n  validation: 0.1\npreset: nano\n",
                b"evaluate: {tasks: ['lambada:x.jsonl']}\nsample:\n  prompts: ['a']\npromote: &a {alias: best}\n",
            ]),
            "--set": (lambda data: load_config(overrides=_lines(data)), [
                b"train.steps=20", b"data.corpus=[{url: stdlib:}]\nmodel.n_embd=64", b"sample.prompts=['a','b']",
                b"train.mixture.code=0.5\ntrain.learning_rate=1e-3",
            ]),
            "--search": (lambda data: read_space(_lines(data), load_config()), [
                b"train.learning_rate=1e-4..1e-2", b"model.n_embd=64,128\ntrain.steps=10..20", b"train.schedule=cosine",
            ]),
            "manifest of a dataset": (self._replacing(manifest, self._read_dataset), [manifest.read_bytes()]),
            "index of a dataset": (self._replacing(index, self._read_dataset), [index.read_bytes()]),
            "shard": (self._read_shard, [shard.read_bytes()]),
            "manifest of a checkpoint": (
                self._replacing(checkpoint / "manifest.json", lambda: self._read_checkpoint(checkpoint)),
                [(checkpoint / "manifest.json").read_bytes()],
            ),
            "config.json": (
                self._replacing(checkpoint / "config.json", lambda: read_weights(str(checkpoint))),
                [(checkpoint / "config.json").read_bytes()],
            ),
            "safetensors": (self._in_file("m.safetensors", self._read_safetensors), [self._safetensors()]),
            "torch file": (self._in_file("m.pt", self._read_torch), self._torch_files()),
            "tokenizer.json": (
                lambda data: read_files((("tokenizer.json", data),), "x"), [self._tokenizer()],
            ),
            "JSON lines": (self._in_file("a.jsonl", lambda file: self._read_source(file, "jsonl")), [rows]),
            "beginning of .json": (lambda data: kind_of_json(data, "text", where="x", needs_field=True), [
                rows, b'[{"text": "a"}]', b'{"text":\n "a"}\n'
            ]),
            "Parquet": (self._in_file("a.parquet", lambda file: self._read_source(file, "parquet")), [self._parquet()]),
            "packed text": (self._in_file("a.txt.gz", lambda file: self._read_source(file, "text")), [
                zlib.compress(b"a b c " * 50, wbits=31), zlib.compress(b"", wbits=31)
            ]),
            "task": (self._in_file("t.jsonl", lambda file: read_questions(f"hellaswag:{file}")), [
                b'{"ctx": "a", "ctx_a": "a", "ctx_b": "b", "endings": ["c", "d"], "label": 1, "activity_label": "x"}\n'
            ]),
            "outcome": (self._in_file("o.json", lambda file: Outcome.read(str(file))), [
                Outcome(status="finished", step=3, checkpoint="x", train_loss=1.5).model_dump_json().encode()
            ]),
        }  # fmt: skip

    def _in_file(self, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        file = self._folder / name

        def target(data: bytes) -> object:
            file.write_bytes(data)
            return read(file)

        return target

    def _replacing(self, file: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
        """Reads what a file is a part of, with other bytes in it."""

        content = file.read_bytes()

        def target(data: bytes) -> object:
            file.write_bytes(data)
            try:
                return read()
            finally:
                file.write_bytes(content)

        return target

    def _read_shard(self, data: bytes) -> None:
        """As a build looks at what lies where a shard of its own is to go."""
        try:
            reader = ShardReader(data)
            reader.note()
            reader.describe("corpus", "train", "0" * 32, len(data), "")
            for row in reader.rows():
                row.tokens.sum()
        except DAMAGED as error:
            raise UserError(first_line(error)) from None

    def _read_dataset(self) -> None:
        dataset = open_dataset(str(self._dataset))
        dataset.index().paths()
        dataset.total("tokens")
        dataset.load_tokenizer()

    def _read_checkpoint(self, folder: Path) -> None:
        if (checkpoint := open_checkpoint(str(folder))) is not None:
            checkpoint.json("state.json")

    def _read_safetensors(self, file: Path) -> None:
        for stored in open_safetensors(file, str(file)).values():
            stored.read()

    def _read_torch(self, file: Path) -> None:
        open_torch(file, str(file))
        read_weights(str(file))

    def _read_source(self, file: Path, kind: str) -> None:
        for source in self._sources(file):
            if kind == "jsonl":
                list(read_jsonl(source, ReadOptions(), LeftOut(), 0, None))
            elif kind == "parquet":
                list(read_parquet(source, ReadOptions(), LeftOut(), 0, None))
            else:
                with open_whole(source) as stream:
                    while stream.read(1 << 20):
                        pass

    def _sources(self, file: Path) -> list[Source]:
        return list_sources(DataConfig(corpus=[str(file)]), quiet=True)  # type: ignore[list-item]

    def _write_checkpoint(self) -> None:
        config = ModelConfig(n_layer=1, n_embd=16, n_head=2, context_length=16, vocab_size=32)
        beside = hf_config(config, "gpt2", 0)
        write_checkpoint(str(self._training), 1, model=hf_tensors(GPT(config)), config=beside, state={"step": 1})

    def _safetensors(self) -> bytes:
        file = self._folder / "good.safetensors"
        save_file(
            {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0), "c": torch.ones(4, dtype=torch.bfloat16)}, file
        )
        return file.read_bytes()

    def _torch_files(self) -> list[bytes]:
        file = self._folder / "good.pt"
        torch.save({"model": {"wte.weight": torch.zeros(4, 2)}, "step": 3}, file)
        return [file.read_bytes(), pickle.dumps({"a": os.getcwd}), struct.pack("<256i", 20240326, 3, *([8] * 254))]

    def _tokenizer(self) -> bytes:
        as_whole_file(self._folder / "german")
        return (self._folder / "german" / "tokenizer.json").read_bytes()

    def _parquet(self) -> bytes:
        file = self._folder / "good.parquet"
        table = pa.table({"text": ["a b", "caf\u00e9", None], "n": np.arange(3), "nested": [{"text": "x"}] * 3})
        pq.write_table(table, file, row_group_size=2)
        return file.read_bytes()


def _lines(data: bytes) -> list[str]:
    return data.decode("utf-8", "surrogateescape").split("\n")[:3]
