"""SHA-256 of files that did not change since they were hashed last: remembered beside the datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from gptpipe import storage
from gptpipe.corpus.readers import changed, gone
from gptpipe.corpus.sources import Source

FINGERPRINTS = ".fingerprints.parquet"
_HASH_BLOCK = 1 << 20
_READERS = 8  # threads that hash files: SHA-256 releases the interpreter lock
_SCHEMA = pa.schema({"url": pa.string(), "size": pa.int64(), "version": pa.string(), "sha256": pa.string()})

State = tuple[str, int, str]  # URL, size and version: while these stay, so does the content


class Fingerprints:
    """What is known of files, by URL, size and version."""

    def __init__(self, out: str) -> None:
        self._url = storage.join(storage.normalize(out), FINGERPRINTS)
        self._known = self._read()

    def of(self, states: list[State], hash_file: Callable[[State], str]) -> list[str]:
        """The SHA-256 of each; those that are not known are hashed now and remembered."""
        new = [state for state in states if state not in self._known]
        small = [state for state in new if storage.is_local(state[0]) and state[1] < _HASH_BLOCK]
        hashes = {state: hash_file(state) for state in small}  # threads would wait for one another longer than for them
        with ThreadPoolExecutor(_READERS) as pool:
            large = [state for state in new if state not in hashes]
            hashes |= dict(zip(large, pool.map(hash_file, large), strict=True))
        hashed = [self._known.get(state) or hashes[state] for state in states]
        self.remember(zip(states, hashed, strict=True))
        return hashed

    def knows(self, source: Source) -> bool:
        """Whether a source needs no hashing."""
        return (source.url, source.size, source.version) in self._known

    def remember(self, hashes: Iterable[tuple[State, str]]) -> None:
        new = {state: sha256 for state, sha256 in hashes if self._known.get(state) != sha256}
        if not new:
            return
        merged = {state[0]: (state, sha256) for state, sha256 in (self._known | new).items()}  # one state a file
        self._known = dict(merged.values())
        self._write()

    def _read(self) -> dict[State, str]:
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(self._url)), page_checksum_verification=True)
            if not table.schema.equals(_SCHEMA):  # no checksum guards it: a flipped byte makes text of it bytes
                return {}
            rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
            return {(url, size, version): sha256 for url, size, version, sha256 in rows if version}
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return {}  # it only spares work: a missing or damaged one costs a second hashing

    def _write(self) -> None:
        columns = list(zip(*((*state, sha256) for state, sha256 in self._known.items()), strict=True))
        table = pa.table(list(map(list, columns)), schema=_SCHEMA)
        sink = pa.BufferOutputStream()
        # a flipped byte of a digest would pass for a file that changed
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        storage.write_bytes(self._url, sink.getvalue().to_pybytes())


def fingerprint(sources: list[Source], known: Fingerprints) -> list[Source]:
    """The sources with their SHA-256, hashing only those that are new or changed since the last time here."""
    hashed = known.of([(source.url, source.size, source.version) for source in sources], hash_file)
    return [replace(source, sha256=sha256) for source, sha256 in zip(sources, hashed, strict=True)]


def hash_file(state: State) -> str:
    """The SHA-256 of one file; a UserError when it is not there as it was listed."""
    url, size, _ = state
    if storage.is_local(url) and size < _HASH_BLOCK:
        return _hash_small(url, size)
    digest = hashlib.sha256()
    read = 0
    source = Source("", url, url, size, "", "", "")
    try:
        with storage.open_read(url) as stream, storage.explained(url):
            while block := stream.read(_HASH_BLOCK):
                read += len(block)
                if read > size:  # an answer need not end
                    raise changed(source)
                digest.update(block)
    except FileNotFoundError:
        raise gone(source) from None
    if read != size:
        raise changed(source)
    return digest.hexdigest()


def _hash_small(url: str, size: int) -> str:
    """SHA-256 of a small local file, read at once: there may be a million of them."""
    source = Source("", url, url, size, "", "", "")
    try:
        # a path object would take as long as the reading
        with storage.explained(url), open(url, "rb", buffering=0) as file:  # noqa: PTH123
            content = file.read()
    except FileNotFoundError:
        raise gone(source) from None
    if len(content) != size:
        raise changed(source)
    return hashlib.sha256(content).hexdigest()
