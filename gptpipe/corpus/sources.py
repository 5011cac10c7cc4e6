"""Which files a corpus has: files, folders, globs, URLs and the built-in `stdlib:`."""

from __future__ import annotations

import logging
import re
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from gptpipe import storage
from gptpipe.config import Corpus, DataConfig
from gptpipe.corpus.json_text import LOOKED_AT, kind_of_json
from gptpipe.errors import UserError
from gptpipe.wording import counted

log = logging.getLogger(__name__)

TEXT_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "txt text md markdown rst tex org adoc html xml csv tsv log",
        "py pyi ipynb js jsx ts tsx java kt scala c h cc cpp hpp cs go rs rb php pl lua swift r jl hs ml clj ex erl",
        "sh sql css scss yaml yml toml ini cfg proto cu zig nim dart",
    )
    for name in names.split()
)
JSONL_SUFFIXES = frozenset([".jsonl", ".ndjson"])
PARQUET_SUFFIXES = frozenset([".parquet", ".pq"])
PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_AT_ONCE = 16  # files looked at
_IGNORED_FOLDERS = frozenset(["__pycache__", "node_modules"])


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    Attributes:
        corpus: name of the corpus.
        path: relative to the corpus root, forward slashes.
        kind: text, jsonl or parquet.
        packing: gzip, zstd, or empty.
        version: changes whenever the content may have changed; spares hashing an unchanged file again.
        errors: what happens to text that is not UTF-8 (strict, replace, skip).
        sha256: of the content; empty until it was read.
    """

    corpus: str
    path: str
    url: str
    size: int
    kind: str
    version: str
    errors: str
    packing: str = ""
    sha256: str = ""

    @property
    def can_be_cut(self) -> bool:
        """Whether a range of it can be read without the rest: the same wherever it lies, as the shards must be."""
        return not self.packing


@dataclass(frozen=True)
class BuiltIn:
    """A corpus that needs no file of the user's."""

    name: str
    description: str

    def files(self) -> Iterator[storage.Entry]:
        """The running Python's own standard library: every .py file that is part of it."""
        root = Path(sysconfig.get_paths()["stdlib"])
        for file in sorted(root.rglob("*.py")):
            path = file.relative_to(root).as_posix()
            first = path.split("/", 1)[0]
            if first in ("site-packages", "dist-packages") or "__pycache__" in path or not file.is_file():
                continue
            yield storage.entry_of(file, path)


BUILT_IN = {
    "stdlib:": BuiltIn("stdlib", "the running Python's own standard library, about 30 MB of source code"),
}


def list_sources(config: DataConfig, *, quiet: bool = False) -> list[Source]:
    """All files of all corpora, sorted by corpus (in the order given) and path.

    Args:
        quiet: say nothing about files that are left out because they are no text.

    Raises:
        UserError: a corpus matches no file, or two corpora have the same name.
    """
    sources: list[Source] = []
    for corpus, name in zip(config.corpus, corpus_names(config.corpus), strict=True):
        listed = _list_corpus(corpus, name, config, quiet)
        if not any(source.size for source in listed):
            raise UserError("every file of it is empty", where=corpus.url, hint="give files with text in them")
        sources += sorted(listed, key=lambda source: source.path)
    return sources


def corpus_names(corpora: list[Corpus]) -> list[str]:
    """The names of the corpora: given, of the built-in, or by position, so that a moved folder keeps its id."""
    names: list[str] = []
    urls = [storage.normalize(corpus.url) for corpus in corpora]
    for position, corpus in enumerate(corpora, 1):
        if urls.index(urls[position - 1]) != position - 1:
            raise UserError("this corpus is given twice", where=corpus.url, hint="name every corpus once")
        built_in = BUILT_IN.get(corpus.url)
        default = built_in.name if built_in else "corpus" if position == 1 else f"corpus-{position}"
        names.append(corpus.name or default)
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two corpora are called {name!r}",
                where="data.corpus",
                hint="give each its own name: NAME=URL",
            )
    return names


def _list_corpus(corpus: Corpus, name: str, config: DataConfig, quiet: bool) -> list[Source]:
    url = corpus.url
    if url in BUILT_IN:
        # the library holds a few files in other encodings on purpose: they are left out and counted
        errors = "skip" if config.errors == "strict" else config.errors
        return [_source(entry, name, "text", "", errors) for entry in BUILT_IN[url].files()]
    if ":" in url and "/" not in url and not storage.local_path(url).exists():
        raise UserError("no built-in corpus is called that", where=url, hint=f"known: {', '.join(BUILT_IN)}")
    entries, listed, passed_over = _find(url)
    kinds = [(entry, *_kind(entry.path)) for entry in entries]
    if not listed:  # a file named by the user is text whatever its suffix
        kinds = [(entry, kind or "text", packing) for entry, kind, packing in kinds]
    listed_whole = listed and not _is_glob(url)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        field = config.text_field
        looked_at = list(pool.map(lambda each: _by_content(each[0], each[1], each[2], field, listed_whole), kinds))
    kinds = [(entry, kind, packing) for (entry, _, packing), kind in zip(kinds, looked_at, strict=True)]
    sources = [_source(entry, name, kind, packing, config.errors) for entry, kind, packing in kinds if kind]
    if not quiet and (others := [entry.path for entry, kind, _ in kinds if not kind]):
        log.info("%s: %s left out, which hold no text (%s)", url, counted(len(others), "file"), _some(others))
    if not quiet and passed_over:
        log.warning("%s: %s passed over (%s)", url, counted(len(passed_over), "name"), _some(passed_over))
    for source in sources:
        if not source.path.isprintable() and source.path.encode("utf-8", "replace") != source.path.encode(
            "utf-8", "surrogateescape"
        ):
            raise UserError("a file's name is not UTF-8", where=ascii(source.url), hint="rename the file")
    if not sources:
        detail = f"none of its {len(entries)} files is text, .jsonl or .parquet" if entries else "no file matches"
        if not entries and storage.lacks_bucket(url):
            raise UserError("there is no such bucket", where=url, hint="correct its name, or create it")
        raise UserError(detail, where=url, hint="give a file, a folder, a glob in quotes, an s3:// URL, or stdlib:")
    return sources


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")


def _source(entry: storage.Entry, corpus: str, kind: str, packing: str, errors: str) -> Source:
    return Source(corpus, entry.path, entry.url, entry.size, kind, entry.version, errors, packing)


def _kind(path: str) -> tuple[str, str]:
    """What a file's name says it holds (text, jsonl, parquet or nothing known), and how it is packed."""
    name = PurePosixPath(path)
    packing = PACKINGS.get(name.suffix.lower(), "")
    suffix = (name.with_suffix("") if packing else name).suffix.lower()
    if suffix in JSONL_SUFFIXES:
        return "jsonl", packing
    if suffix in PARQUET_SUFFIXES and not packing:  # Parquet packs its pages itself
        return "parquet", ""
    return "text" if suffix in TEXT_SUFFIXES else "", packing


def _by_content(entry: storage.Entry, kind: str, packing: str, field: str, needs_field: bool) -> str:
    """The kind of a file whose name ends in .json, which many things do: lines of JSON are many documents.

    Args:
        needs_field: whether its objects must have the text: what lies in a folder may be anything.

    Raises:
        UserError: an array of objects with text in them.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(entry.path).suffixes]
    if suffixes[-2 if packing else -1 :][:1] != [".json"]:
        return kind
    json_kind = kind_of_json(_beginning(entry.url, packing), field, where=entry.url, needs_field=needs_field)
    return json_kind or ("" if needs_field else kind)


def _beginning(url: str, packing: str) -> bytes:
    with storage.open_read(url) as raw:
        try:
            return bytes(pa.input_stream(raw, compression=packing or None).read(LOOKED_AT))
        except (OSError, pa.ArrowException):  # a damaged file: whoever reads all of it says so
            return b""


def _is_glob(url: str) -> bool:
    return any(character in url for character in "*?[") and not (
        storage.is_local(url) and storage.local_path(url).exists()
    )


def _find(url: str) -> tuple[list[storage.Entry], bool, list[str]]:
    """Entries of a file, glob or folder, whether they were listed rather than named, and what was passed over."""
    passed_over: list[str] = []
    entries, listed = _look_for(url, passed_over)
    return entries, listed, [line for line in passed_over if _visible(line.partition(": ")[0])]


def _look_for(url: str, passed_over: list[str]) -> tuple[list[storage.Entry], bool]:
    if storage.is_local(url):
        path = storage.local_path(url)
        if path.is_file():
            return [storage.entry_of(path, path.name)], False
    if _is_glob(url):
        return _glob(url, passed_over), True
    if storage.is_local(url):
        return [entry for entry in storage.list_files(url, passed_over) if _visible(entry.path)], True
    if url.startswith(("http://", "https://")):  # there are no folders there
        with suppress(FileNotFoundError):
            return [storage.describe(url)], False
        return [], True
    if entries := [entry for entry in storage.list_files(url) if _visible(entry.path)]:
        return entries, True
    with suppress(FileNotFoundError):
        return [storage.describe(url)], False
    return [], True


def _glob(url: str, passed_over: list[str]) -> list[storage.Entry]:
    """Files a glob matches, their paths relative to the part before the first wildcard's folder."""
    first = min(url.index(character) for character in "*?[" if character in url)
    root, _, pattern = url[:first].rpartition("/")
    pattern += url[first:]
    if not root:
        root = "/" if url.startswith("/") else "."
    expression = re.compile(_glob_expression(pattern))
    hidden = any(part.startswith(".") for part in pattern.split("/"))  # asked for by name
    others: list[str] = []
    entries = [entry for entry in storage.list_files(root, others) if expression.fullmatch(entry.path)]
    # of what cannot be read, a folder may hold what a pattern with folders in it means
    passed_over += [line for line in others if "/" in pattern or expression.fullmatch(line.partition(": ")[0])]
    return [entry for entry in entries if hidden or _visible(entry.path)]


def _glob_expression(pattern: str) -> str:
    """A glob as a regular expression: `**/` any folders, `*` and `?` within one name, `[...]` a class."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and "]" in pattern[i + 1 :]:
            end = pattern.index("]", i + 2) if pattern[i + 1 : i + 2] == "]" else pattern.index("]", i + 1)
            inside = pattern[i + 1 : end]
            out, i = out + "[" + ("^" + inside[1:] if inside[:1] == "!" else inside) + "]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out


def _visible(path: str) -> bool:
    parts = path.split("/")
    return not any(part.startswith(".") or part in _IGNORED_FOLDERS for part in parts)
