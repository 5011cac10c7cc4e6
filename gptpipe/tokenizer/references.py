"""Tokenizers by what they are called: the name of a tiktoken encoding, or a place where a tokenizer's files lie."""

from __future__ import annotations

import re
from functools import lru_cache

import tiktoken

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.storage.hub import HUB, from_hub
from gptpipe.tokenizer.encoding import OWN, Tokenizer
from gptpipe.tokenizer.gpt2 import gpt2
from gptpipe.tokenizer.huggingface import FILES, MODEL_SETTINGS, WHOLE, read_files

_KEPT = re.compile(rf"^(?P<folder>.+)#(?P<name>{OWN}[0-9a-f]{{12}})$")
_HINT = "give a folder with a tokenizer.json, or with vocab.json and merges.txt"


def get_tokenizer(reference: str = "") -> Tokenizer:
    """The tokenizer that is called so.

    Args:
        reference: empty is `gpt2`, which needs no network, as another tiktoken encoding does; or a folder, a URL or
            `hf:NAME` where a Hugging Face tokenizer lies; or a folder, `#` and the name that the tokenizer must have.

    Raises:
        UserError: there is none such, or it cannot be read.
    """
    if reference in ("", "gpt2"):
        return gpt2()
    if reference in (known := tiktoken.list_encoding_names()):
        return _of_tiktoken(reference)
    if _KEPT.match(reference):
        return _kept(reference)
    if not reference.startswith(HUB) and "/" not in reference and not storage.is_local_folder(reference):
        raise UserError(
            f"no tiktoken encoding is called {reference!r}",
            where="data.tokenizer",
            hint=f"known: {', '.join(known)}; or {_HINT}",
        )
    folder = from_hub(reference, list(FILES)) if reference.startswith(HUB) else storage.normalize(reference)
    tokenizer = tokenizer_in(folder, reference) or _named_in(folder)
    if tokenizer is None:
        raise UserError("no tokenizer there", where=reference, hint=_HINT)
    return tokenizer


def is_own(name: str) -> bool:
    """Whether a tokenizer of that name came in files, and is kept beside what was made with it."""
    return name.startswith(OWN)


def reference_to(name: str, folder: str) -> str:
    """What finds the tokenizer of that name, whose files, if it came in files, lie in a folder."""
    return f"{folder}#{name}" if is_own(name) else name


def tokenizer_in(folder: str, where: str = "") -> Tokenizer | None:
    """The tokenizer whose Hugging Face files lie in a folder, None where none do.

    Args:
        folder: a URL.
        where: for what is said; by default the folder.

    Raises:
        UserError: it gives ids that cannot be given here; a file is damaged.
    """
    contents = [(name, content) for name in FILES if (content := _read(storage.join(folder, name))) is not None]
    if not contents:
        return None
    model = _read(storage.join(folder, MODEL_SETTINGS))
    tokenizer = read_files((*contents, *([(MODEL_SETTINGS, model)] if model is not None else [])), where or folder)
    return tokenizer.kept_in(folder) if tokenizer is not None and tokenizer.files else tokenizer


@lru_cache(maxsize=4)
def _kept(reference: str) -> Tokenizer:
    match = _KEPT.match(reference)
    assert match is not None
    tokenizer = tokenizer_in(match["folder"])
    if tokenizer is None:
        where = storage.join(match["folder"], WHOLE)
        raise UserError("the tokenizer's file is missing", where=where, hint="copy it there, or make the folder again")
    if tokenizer.name != match["name"]:
        raise UserError(
            f"the tokenizer is {tokenizer.name}, not {match['name']}, which this was made with",
            where=match["folder"],
            hint="bring back the tokenizer's files as they were, or make the folder again",
        )
    return tokenizer


def _named_in(folder: str) -> Tokenizer | None:
    """The tiktoken encoding that the configuration of a checkpoint of ours names."""
    try:
        ours = storage.read_json(storage.join(folder, MODEL_SETTINGS)).get("gptpipe")
    except FileNotFoundError:
        return None
    name = ours.get("tokenizer") if isinstance(ours, dict) else None
    return get_tokenizer(name) if name in tiktoken.list_encoding_names() else None


@lru_cache(maxsize=4)
def _of_tiktoken(name: str) -> Tokenizer:
    try:
        return Tokenizer(tiktoken.get_encoding(name))
    except Exception as error:  # requests raises a whole family; each means that the ranks did not come
        raise UserError(
            f"its ranks could not be fetched ({type(error).__name__})",
            where=f"tokenizer {name}",
            hint="gpt2 needs no network; for others fill TIKTOKEN_CACHE_DIR on a machine that has one",
        ) from error


def _read(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url, small=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
