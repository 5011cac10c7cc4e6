"""Hugging Face's files of a byte-level BPE tokenizer, read so that text gets the ids that `transformers` gives it.

tiktoken merges by the ids of what is made, Hugging Face by a list of pairs. Both give the same ids where the ids grow
along the list and every token, written out in bytes, is merged to itself by the pair that the list makes it of: then no
two neighbours are ever merged that the list has not. That is checked, and what does not hold is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import tiktoken

from gptpipe.errors import UserError
from gptpipe.tokenizer.encoding import END_OF_TEXT, GPT2_PATTERN, QWEN_PATTERN, AddedToken, Tokenizer
from gptpipe.tokenizer.gpt2 import byte_of_character, gpt2, gpt2_files

WHOLE, VOCABULARY, MERGES, ADDED = "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"
SPECIAL, SETTINGS, MODEL_SETTINGS = "special_tokens_map.json", "tokenizer_config.json", "config.json"
TEMPLATE = "chat_template.jinja"
_MOST_IDS = 1 << 24
_TEXTS = (MERGES, TEMPLATE)  # all others are JSON
FILES = (WHOLE, VOCABULARY, MERGES, ADDED, SPECIAL, SETTINGS, TEMPLATE)
_SWITCHES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
_HINT = "byte-level BPE as GPT-2's or Qwen's is read; for another one train from scratch with a tokenizer of tiktoken's"


@dataclass
class _Parts:
    """What the files say.

    Attributes:
        ids: of the vocabulary, by the characters that stand for bytes.
        merges: pairs of the same, the first to be merged first.
        added: tokens that text is searched for, by their text.
        names: the text of special tokens by what they are called (`eos_token`).
        is_qwen: whether text is brought into NFC and split as for Qwen, not as for GPT-2.
        template: how `transformers` writes a conversation as text; nothing here uses it.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, AddedToken] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    is_qwen: bool = False
    template: str = ""

    @property
    def everything(self) -> dict[str, int]:
        """Ids by text or characters."""
        return {**self.ids, **{text: token.id for text, token in self.added.items()}}


@lru_cache(maxsize=4)
def read_files(contents: tuple[tuple[str, bytes], ...], where: str) -> Tokenizer | None:
    """The tokenizer of a folder: GPT-2's where it gives the same ids, or None where there is no vocabulary.

    Args:
        contents: names from `FILES` and `config.json`, with what the files hold.
        where: for what is said.

    Raises:
        UserError: a file is damaged, or the tokenizer gives ids that cannot be given here.
    """
    values = {name: _parsed(name, content, where) for name, content in contents if name not in _TEXTS}
    texts = {name: content.decode("utf-8", "replace") for name, content in contents if name in _TEXTS}
    parts = _read_parts(values, texts.get(MERGES, ""), where)
    if parts is None:
        return None
    inline = values.get(SETTINGS, {}).get("chat_template")
    parts.template = texts.get(TEMPLATE, "") or (inline if isinstance(inline, str) else "")
    if _is_gpt2(parts):
        return gpt2()
    made = _build(parts, _separator(parts, values.get(MODEL_SETTINGS, {}), where), where)
    kept = values.get(SETTINGS, {}).get("gptpipe")
    if not isinstance(kept, dict) or kept.get("tokenizer") != made.name:
        _check_merges(parts, where)
    return made


def _parsed(name: str, content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{name} is not JSON of an object", where=where, hint="the file is damaged; fetch it again")
    return value


def _read_parts(values: Mapping[str, dict[str, Any]], merges: str, where: str) -> _Parts | None:
    settings = values.get(SETTINGS, {})
    if WHOLE in values:
        whole = values[WHOLE]
        is_qwen = _check_steps(whole, settings, where)
        model = _object(whole.get("model"))
        pairs = [_pair(each, where) for each in _list(model.get("merges"))]
        parts = _Parts(_ids(model.get("vocab"), where), pairs, is_qwen=is_qwen)
        for each in map(_object, _list(whole.get("added_tokens"))):
            _add(parts, each.get("content"), each.get("id"), each, where)
    elif VOCABULARY in values:
        pairs = [_pair(line, where) for line in merges.split("\n") if line.strip() and not line.startswith("#version")]
        is_qwen = str(settings.get("tokenizer_class")).startswith("Qwen2Tokenizer")  # Qwen3's is called so too
        parts = _Parts(_ids(values[VOCABULARY], where), pairs, is_qwen=is_qwen)
        if settings.get("add_prefix_space"):
            raise _changes_text(where)
    else:
        return None
    for text, id_ in values.get(ADDED, {}).items():
        _add(parts, text, id_, {}, where)
    for number, value in _object(settings.get("added_tokens_decoder")).items():
        each = _object(value)
        _add(parts, each.get("content"), int(number) if number.isdecimal() and len(number) < 20 else None, each, where)
    _name_special(parts, {**values.get(SPECIAL, {}), **settings}, where)
    return parts


def _object(value: Any) -> dict[str, Any]:
    """What should be an object; an empty one in place of anything else, whose absence is then said."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_IDS


def _ids(vocabulary: Any, where: str) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not all(map(_is_id, vocabulary.values())):
        raise UserError("its tokenizer has no vocabulary of tokens and ids", where=where, hint=_HINT)
    return vocabulary


def _pair(merge: Any, where: str) -> tuple[str, str]:
    both = merge.split() if isinstance(merge, str) else merge
    if not isinstance(both, list) or len(both) != 2 or not all(isinstance(each, str) for each in both):
        raise UserError(f"its tokenizer merges {merge!r}, which is no pair", where=where, hint=_HINT)
    return both[0], both[1]


def _add(parts: _Parts, text: Any, id_: Any, flags: Mapping[str, Any], where: str) -> None:
    """One more token that text is searched for."""
    if not isinstance(text, str) or not text or not _is_id(id_):
        raise UserError(f"its tokenizer adds {text!r} as {id_!r}, which is no token", where=where, hint=_HINT)
    if has := [name for name in ("lstrip", "rstrip", "single_word") if flags.get(name)]:
        raise UserError(
            f"its tokenizer looks for {text!r} with {', '.join(has)}, which is not done here",
            where=where,
            hint=f"set {has[0]} to false for it in {WHOLE} and {SETTINGS}, if the text has none such",
        )
    special = bool(flags.get("special"))
    token = AddedToken(text, id_, special, first=not flags.get("normalized", not special))
    there = parts.added.get(text)
    if id_ != (have := there.id if there else parts.ids.get(text, id_)):
        raise UserError(f"its tokenizer gives {text!r} two ids, {have} and {id_}", where=where, hint=_HINT)
    parts.added[text] = there or token


def _name_special(parts: _Parts, named: Mapping[str, Any], where: str) -> None:
    """Tokens that the settings call special; those that have no id are never written, and left out."""
    ids = parts.everything
    listed = [(name, value) for name, value in named.items() if name.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = named.get(key)
        listed += [("", value) for value in (*_list(more), *_object(more).values())]
    for name, value in listed:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text in ids:
            _add(parts, text, ids[text], {**(value if isinstance(value, dict) else {}), "special": True}, where)
            if name:
                parts.names[name] = text


def _check_steps(whole: dict[str, Any], settings: Mapping[str, Any], where: str) -> bool:
    """Whether what is done before bytes are merged is Qwen's way; otherwise it is GPT-2's, which changes no text.

    Raises:
        UserError: it is a third way.
    """
    model, splits = _object(whole.get("model")), _object(whole.get("pre_tokenizer"))
    if (kind := model.get("type", "BPE")) != "BPE":
        raise UserError(f"its tokenizer is of the kind {kind}, not BPE", where=where, hint=_HINT)
    if has := [name for name in _SWITCHES if model.get(name)]:
        raise UserError(f"its tokenizer uses {', '.join(has)}", where=where, hint=_HINT)
    prefix = splits.get("add_prefix_space") or settings.get("add_prefix_space")
    is_plain = splits.get("type") == "ByteLevel" and splits.get("use_regex", True)
    is_gpt2, is_qwen = is_plain and not whole.get("normalizer"), _is_qwens(splits, whole.get("normalizer"))
    if not (is_gpt2 or is_qwen) or prefix:
        raise _changes_text(where)
    return is_qwen


def _is_qwens(splits: Mapping[str, Any], normalizer: Any) -> bool:
    steps = [_object(each) for each in _list(splits.get("pretokenizers"))]
    if splits.get("type") != "Sequence" or [each.get("type") for each in steps] != ["Split", "ByteLevel"]:
        return False
    split, level = steps
    by_pattern = _object(split.get("pattern")).get("Regex") == QWEN_PATTERN and not split.get("invert")
    whole = not level.get("use_regex", True) and not level.get("add_prefix_space", True)
    return by_pattern and split.get("behavior") == "Isolated" and whole and normalizer == {"type": "NFC"}


def _changes_text(where: str) -> UserError:
    message = "its tokenizer changes or splits text in another way than GPT-2's and Qwen's"
    return UserError(message, where=where, hint=_HINT)


def _is_gpt2(parts: _Parts) -> bool:
    own = {END_OF_TEXT: gpt2().end_of_text, **parts.everything}
    if parts.is_qwen or len(own) != gpt2().vocab_size or not set(parts.added) <= {END_OF_TEXT}:
        return False  # without writing GPT-2's vocabulary out, which takes a fifth of a second
    ids, merges = gpt2_files()
    same_merges = not parts.merges or [" ".join(pair) for pair in parts.merges] == merges.split("\n")[1:-1]
    return own == ids and same_merges


def _separator(parts: _Parts, model: Mapping[str, Any], where: str) -> AddedToken:
    """The token between documents: the one called eos, or else the one that the model's configuration calls so."""
    ids, made = parts.everything, {left + right for left, right in parts.merges}
    number = model.get("eos_token_id")
    of_model = [text for text, id_ in ids.items() if id_ == number and text not in made and len(text) > 1]
    for text in (parts.names.get("eos_token", ""), END_OF_TEXT, *of_model):
        if text in ids:
            return AddedToken(text, ids[text], special=True, first=True)
    raise UserError(
        "its tokenizer names no token that ends a text", where=where, hint=f"name one as eos_token in {SETTINGS}"
    )


def _build(parts: _Parts, separator: AddedToken, where: str) -> Tokenizer:
    byte_of, ranks = byte_of_character(), {}
    if not parts.merges and len(parts.ids) > len(byte_of):
        raise UserError("its tokenizer has no merges", where=where, hint=f"put {MERGES} beside {VOCABULARY}")
    missing = [byte for letter, byte in byte_of.items() if letter not in parts.ids]
    if missing:
        raise UserError(f"its tokenizer has no token for the byte 0x{missing[0]:02x}", where=where, hint=_HINT)
    made = dict.fromkeys([*byte_of, *(left + right for left, right in parts.merges)])
    for letters in made:
        if letters not in parts.ids:
            raise UserError(f"its tokenizer makes {letters!r}, which has no id", where=where, hint=_HINT)
        if strange := [letter for letter in letters if letter not in byte_of]:
            raise UserError(f"its tokenizer merges {strange[0]!r}, which is no byte", where=where, hint=_HINT)
        ranks[bytes(byte_of[letter] for letter in letters)] = parts.ids[letters]
    # what no merge makes is never written: it only has a text
    special = {text: id_ for text, id_ in parts.everything.items() if text not in made or text in parts.added}
    added = [token for text, token in parts.added.items() if text != separator.text]
    _check_apart([*ranks.values(), *(special[text] for text in special if text not in made)], where)
    encoding = tiktoken.Encoding(
        "own",
        pat_str=QWEN_PATTERN if parts.is_qwen else GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={**special, separator.text: separator.id},
    )
    normalization: Literal["", "NFC"] = "NFC" if parts.is_qwen else ""
    tokenizer = Tokenizer(encoding, separator=separator.text, added=added, normalization=normalization)
    tokenizer.files = _files(parts, [*added, separator], tokenizer.name)
    return tokenizer


def _check_apart(ids: list[int], where: str) -> None:
    seen: set[int] = set()
    for id_ in ids:
        if id_ in seen:
            raise UserError(f"its tokenizer gives the id {id_} to two tokens", where=where, hint=_HINT)
        seen.add(id_)


def _check_merges(parts: _Parts, where: str) -> None:
    """Raises UserError: tiktoken would merge in another way than the list of pairs says."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    last = -1
    for pair in parts.merges:
        token = pair[0] + pair[1]
        if token not in pairs:
            if parts.ids[token] <= last:
                message = f"its tokenizer's ids are not in the order of its merges, {token!r} for one"
                raise UserError(message, where=where, hint=_HINT)
            last = parts.ids[token]
        pairs.setdefault(token, []).append(pair)
    ranks = {token: parts.ids[token] for token in pairs}
    for token, known in pairs.items():
        if _last_pair(token, ranks) not in known:
            message = f"its tokenizer makes {token!r} of a pair that its bytes are never merged to"
            raise UserError(message, where=where, hint=_HINT)


def _last_pair(token: str, ranks: Mapping[str, int]) -> tuple[str, ...]:
    """What a token's bytes are merged to by what comes before it: two parts, where it is ever reached."""
    parts, limit = list(token), ranks[token]
    while len(parts) > 2:
        made = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        lowest = min(made)
        if lowest >= limit:
            break
        place = made.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return tuple(parts)


def _files(parts: _Parts, added: list[AddedToken], name: str) -> dict[str, bytes]:
    """The tokenizer as `transformers` and this module read it.

    Args:
        added: every token that text is searched for, the separator last.
        name: what the tokenizer is called; it shows that what is read is what was written.
    """
    is_qwen = parts.is_qwen
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": not is_qwen, "use_regex": not is_qwen}
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    tokens = [
        {
            "id": token.id,
            "content": token.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": not token.first,
            "special": token.special,
        }
        for token in sorted(added, key=lambda token: token.id)
    ]
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": {"type": "NFC"} if is_qwen else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]} if is_qwen else level,
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(parts.ids.items(), key=lambda item: item[1])),
            "merges": [" ".join(pair) for pair in parts.merges],
        },
    }
    separator = added[-1].text
    special = {**dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), separator), **parts.names}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **special,
        "eos_token": separator,
        **({"chat_template": parts.template} if parts.template else {}),
        "gptpipe": {"tokenizer": name},
    }
    return {WHOLE: _json(whole), SETTINGS: _json(settings)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def vocabulary_of(tokenizer: Tokenizer) -> tuple[dict[str, int], list[str]]:
    """Ids by token in their order, and merges, as GPT-2's `vocab.json` and `merges.txt` have them.

    Raises:
        UserError: a tiktoken encoding other than GPT-2's: its merges are not known.
    """
    if tokenizer.files:
        whole = json.loads(tokenizer.files[WHOLE])
        ids = {**whole["model"]["vocab"], **{each["content"]: each["id"] for each in whole["added_tokens"]}}
        return dict(sorted(ids.items(), key=lambda item: item[1])), whole["model"]["merges"]
    if tokenizer.name == gpt2().name:
        known, merges = gpt2_files()
        return known, merges.split("\n")[1:-1]
    raise UserError(f"the merges of the tokenizer {tokenizer.name!r} are not known", hint="GPT-2's are")
