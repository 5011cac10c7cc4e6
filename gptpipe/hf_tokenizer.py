"""The tokenizer in a Hugging Face folder: whether it is GPT-2's, which is the one that its text is read with here."""

from __future__ import annotations

import json
from typing import Any

from gptpipe import storage
from gptpipe.errors import UserError
from gptpipe.tokenizer import END_OF_TEXT, gpt2_files
from gptpipe.wording import counted

WHOLE, VOCABULARY, MERGES, ADDED = "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"
FILES = (WHOLE, VOCABULARY, MERGES, ADDED)
_HINT = "give weights that were trained with GPT-2's own tokenizer: with any other the ids would mean other text"


def check_is_gpt2(folder: str, where: str) -> None:
    """Hold the tokenizer's files, where there are some, against GPT-2's own.

    Args:
        folder: URL that holds them. where: for what is said.

    Raises:
        UserError: it gives other ids, or has tokens of its own.
    """
    whole = _read(folder, WHOLE)
    if whole is not None:
        model = whole.get("model") or {}
        ids, merges = model.get("vocab"), [_joined(each) for each in model.get("merges") or []]
        added = {str(each.get("content")): each.get("id") for each in whole.get("added_tokens") or []}
        _check_steps(whole, where)
    else:
        ids, added = _read(folder, VOCABULARY), _read(folder, ADDED) or {}
        merges = _lines(folder) if ids is not None else []
    if ids is None:
        return
    if not isinstance(ids, dict):
        raise UserError("its tokenizer has no vocabulary of tokens and ids", where=where, hint=_HINT)
    _check_ids(ids | added, merges, where)


def _check_ids(ids: dict[str, Any], merges: list[str], where: str) -> None:
    known, known_merges = gpt2_files()
    others = sorted((token for token, id_ in ids.items() if known.get(token) != id_), key=str)
    if extra := [token for token in others if token not in known and len(ids) > len(known)]:
        names = ", ".join(map(repr, extra[:3])) + (", …" if len(extra) > 3 else "")
        more = f"its tokenizer has {counted(len(extra), 'token')} that GPT-2's has not: {names}"
        raise UserError(more, where=where, hint=_HINT)
    missing = [token for token in known if token not in ids and token != END_OF_TEXT]
    if others or missing:
        token = (others or missing)[0]
        raise UserError(
            f"its tokenizer is not GPT-2's: {token!r} is {ids.get(token, 'no token')} in it and "
            f"{known.get(token, 'no token')} in GPT-2's",
            where=where,
            hint=_HINT,
        )
    if merges and merges != known_merges.split("\n")[1:-1]:
        raise UserError("its tokenizer merges in another order than GPT-2's", where=where, hint=_HINT)


def _check_steps(whole: dict[str, Any], where: str) -> None:
    """What is done before bytes are merged: GPT-2's changes no text, and splits it by its own pattern."""
    splits = whole.get("pre_tokenizer") or {}
    if whole.get("normalizer") or splits.get("type") != "ByteLevel" or splits.get("add_prefix_space"):
        raise UserError("its tokenizer changes or splits text in another way than GPT-2's", where=where, hint=_HINT)


def _joined(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _lines(folder: str) -> list[str]:
    try:
        text = storage.read_bytes(storage.join(folder, MERGES)).decode("utf-8")
    except FileNotFoundError:
        return []
    return [line for line in text.split("\n") if line and not line.startswith("#version")]


def _read(folder: str, name: str) -> dict[str, Any] | None:
    url = storage.join(folder, name)
    try:
        found = json.loads(storage.read_bytes(url))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError("not JSON", where=url, hint="the file is damaged; fetch it again") from None
    return found if isinstance(found, dict) else {}
