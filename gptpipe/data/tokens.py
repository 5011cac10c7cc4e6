"""A split as one stream of tokens, decoded once into flat files on the local disk and memory-mapped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from gptpipe import storage
from gptpipe.data.dataset import Dataset
from gptpipe.data.shards import ShardFile, read_rows
from gptpipe.errors import UserError


class TokenStream:
    """All tokens of a split in the order of the index, `<|endoftext|>` after every document.

    A shard is decoded into `<cache>/tokens/<sha256>.bin` when it is first needed there. The files are written
    whole or not at all and named by content, so ranks and runs of a host share them.

    Attributes:
        length: tokens in the stream, separators counted.
        bytes: UTF-8 bytes of the text it holds.
    """

    def __init__(self, dataset: Dataset, split: str, cache: Path) -> None:
        self.dataset = dataset
        self.split = split
        self.files = dataset.index(split)
        if not self.files:
            have = sorted({file.split for file in dataset.index()})
            raise UserError(f"the dataset has no {split} split", where=dataset.url, hint=f"it has {', '.join(have)}")
        tokenizer = dataset.load_tokenizer()
        self.end_of_text = tokenizer.end_of_text
        self.dtype = np.dtype(tokenizer.dtype)
        self._cache = cache / "tokens"
        self._starts = np.cumsum([0, *(file.tokens + file.documents for file in self.files)])
        self._maps: dict[int, np.ndarray] = {}
        self.length = int(self._starts[-1])
        self.bytes = sum(file.bytes for file in self.files)

    def prepare(self) -> None:
        """Decode every shard that is not in the cache yet, so that training never waits for one."""
        for file in self.files:
            self._decoded(file)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (exclusive), shape (stop - start,)."""
        pieces = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            base, end = int(self._starts[shard]), min(stop, int(self._starts[shard + 1]))
            pieces.append(self._map(shard)[start - base : end - base])
            start, shard = end, shard + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, self.dtype)])

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self._decoded(self.files[shard]), dtype=self.dtype, mode="r")
        return self._maps[shard]

    def _decoded(self, file: ShardFile) -> Path:
        path = self._cache / f"{file.sha256}.bin"
        size = (file.tokens + file.documents) * self.dtype.itemsize
        if path.exists() and path.stat().st_size == size:
            return path
        url = storage.join(self.dataset.url, file.path)
        try:
            content = storage.read_bytes(url)
        except FileNotFoundError:
            raise UserError(
                "a shard is missing", where=url, hint="remove the dataset's folder and tokenize again"
            ) from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise UserError(
                "a shard is damaged: its SHA-256 is not the one in the index",
                where=url,
                hint="remove the dataset's folder and tokenize again",
            )
        separator = np.array([self.end_of_text], dtype=self.dtype)
        pieces: list[np.ndarray] = []
        for row in read_rows(content):
            pieces.append(row.tokens)
            if row.last:
                pieces.append(separator)
        with storage.atomic_file(path) as temporary:
            np.concatenate(pieces).tofile(temporary)
        return path
