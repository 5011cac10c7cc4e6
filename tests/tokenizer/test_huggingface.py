"""Tokenizers of Hugging Face folders: the ids of `transformers`, kept from import to export; the rest is refused."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerFast

from gptpipe.config import Corpus, DataConfig, EvaluateConfig, SampleConfig
from gptpipe.corpus.build import tokenize
from gptpipe.corpus.cuts import CELL
from gptpipe.dataset.dataset import open_dataset
from gptpipe.errors import UserError
from gptpipe.evaluation.evaluate import evaluate
from gptpipe.export.folder import export_hf
from gptpipe.generation.generate import generate
from gptpipe.tokenizer import END_OF_TEXT, QWEN_PATTERN, Tokenizer, get_tokenizer, gpt2_files, tokenizer_in
from gptpipe.tokenizer.huggingface import read_files
from gptpipe.weights.adapt import import_weights
from gptpipe.weights.find import read_weights

GERMAN = (
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Die Übung, die Größe und die Straße: "
    "wir sind hier, und dort waren wir 1999 auch schon; das Donaudampfschiff fährt nicht mehr. "
)
TEXTS = (
    "", " ", "Die Größe der Übung", "  zwei   Räume\n\n\tund\r\nZeilen ", "x1999y", "It's we'll 'tis",
    "日本語 🙂 é e\u0301", "\x00\x01\xa0",
    f"vor{END_OF_TEXT[:5]}nach", "<user>hallo<bot> wie geht's<end>", "<user2><user>", "ein <mark von zwei> und",
)  # fmt: skip


def write_model(folder: Path, vocab: int = 50257, **changes: int) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab, n_positions=16, n_embd=8, n_layer=1, n_head=1, **changes)
    GPT2LMHeadModel(config).save_pretrained(folder)


def gpt2(folder: Path) -> GPT2Tokenizer:
    ids, merges = gpt2_files()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text(merges)
    return GPT2Tokenizer.from_pretrained(folder)


def german(folder: Path, special: tuple[str, ...] = (END_OF_TEXT,)) -> None:
    """A byte-level BPE trained as the GPT-2s of other languages were, in the two old files."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([GERMAN] * 50, vocab_size=500, special_tokens=list(special))
    folder.mkdir(exist_ok=True)
    trained.save_model(str(folder))


def as_whole_file(folder: Path) -> None:
    """As `transformers` saves it today: tokenizer.json."""
    german(folder)
    GPT2Tokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def with_three_added(folder: Path) -> None:
    tokenizer = gpt2(folder)
    tokenizer.add_tokens(["<user>", "<bot>", "<end>"])
    tokenizer.save_pretrained(folder)


def with_marks_and_words(folder: Path) -> None:
    """Marks that are special, words that are not, one the beginning of another, one with a space inside."""
    german(folder)
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<user2>", "<mark von zwei>"]})
    tokenizer.add_tokens(["Donaudampf", "Donaudampfschiff", " und", "jag"])
    tokenizer.save_pretrained(folder)


def in_the_old_form(folder: Path) -> None:
    gpt2(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<user>": 50257, "<bot>": 50258}))


def with_other_names(folder: Path) -> None:
    german(folder, ("<s>", "<pad>", "</s>", "<unk>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "GPT2Tokenizer"}))


CHAT = "{% for each in messages %}<|im_start|>{{ each.content }}<|im_end|>{% endfor %}"


def qwen(folder: Path, pattern: str = QWEN_PATTERN) -> None:
    """A tokenizer as Qwen's: brought into NFC, split by its pattern, marks of turns that are no text."""
    trained = HuggingFaceTokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    trained.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([GERMAN, "if x:\r\n\n\treturn 1234 'LL don't\n"] * 50, trainer)
    trained.add_special_tokens([END_OF_TEXT, "<|im_start|>", "<|im_end|>"])
    trained.add_tokens(["<think>"])
    folder.mkdir(exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))


def qwen_in_two_files(folder: Path) -> None:
    qwen(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in whole["model"]["merges"]))
    (folder / "added_tokens.json").write_text(
        json.dumps({token["content"]: token["id"] for token in whole["added_tokens"] if token["special"]})
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").write_text(settings.pop("chat_template"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


READABLE: dict[str, Callable[[Path], None]] = {
    "another language": german,
    "another language as tokenizer.json": as_whole_file,
    "three tokens added to GPT-2's": with_three_added,
    "marks and words added": with_marks_and_words,
    "tokens added in the old form": in_the_old_form,
    "other names of special tokens": with_other_names,
    "Qwen's": qwen,
    "Qwen's in two files": qwen_in_two_files,
}


def both(folder: Path, case: str) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    write_model(folder, 300)  # transformers looks there for what kind it is
    READABLE[case](folder)
    ours = tokenizer_in(str(folder))
    assert ours is not None
    return ours, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("case", READABLE)
def test_text_gets_the_ids_of_transformers(tmp_path_factory: pytest.TempPathFactory, case: str) -> None:
    ours, theirs = both(tmp_path_factory.mktemp("model"), case)
    assert ours.vocab_size == len(theirs)
    assert ours.end_of_text == theirs.eos_token_id
    pieces = [*ours.decode(list(range(0, ours.vocab_size, 7))).split(), *TEXTS, *(token.text for token in ours.added)]

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=12).map("".join))
    def check(text: str) -> None:
        text = text.replace(ours.separator, "")  # only the pipeline itself writes it
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.encode_array(text).tolist() == ids
        kept = unicodedata.normalize(ours.normalization, text) if ours.normalization else text
        assert ours.decode(ids) == kept
        assert ours.byte_lengths[ids].sum() == len(kept.encode())

    check()
    for text in (*TEXTS, GERMAN, GERMAN * 30):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    both_parts = f"eins{ours.separator}zwei"
    assert ours.encode(both_parts, special=True) == theirs(both_parts, add_special_tokens=False)["input_ids"]
    assert ours.end_of_text not in ours.encode(both_parts)


@pytest.mark.parametrize(
    "case",
    [
        "marks and words added",
        "Qwen's in two files",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("another language", "Qwen's")),
    ],
)
def test_it_is_kept_through_import_tokenizing_evaluation_generation_and_export(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    ours, theirs = both(folder, case)
    write_model(folder, ours.vocab_size, eos_token_id=ours.end_of_text)
    text = GERMAN + "<user>wir<user2> fahren Donaudampfschiff, <mark von zwei> jagen."
    checkpoint = import_weights(str(folder), str(tmp_path / "imported"))
    (tmp_path / "corpus").mkdir()
    for number in range(30):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"{number}: {text}")
    made = tokenize(
        DataConfig(corpus=[Corpus(url=f"{tmp_path}/corpus")], tokenizer=str(folder)), str(tmp_path / "data")
    )
    again = DataConfig(corpus=[Corpus(url=f"{tmp_path}/corpus")], tokenizer=checkpoint.url)
    assert tokenize(again, str(tmp_path / "data")).already_done  # what it says counts, not where it lies
    dataset = open_dataset(made.dataset)
    assert dataset.load_tokenizer().sha256 == ours.sha256
    assert AutoTokenizer.from_pretrained(made.dataset)(text)["input_ids"] == theirs(text)["input_ids"]

    reference = GPT2LMHeadModel.from_pretrained(folder)
    ids = torch.tensor([theirs(text)["input_ids"]])
    with torch.inference_mode():
        windows = [ids[:, start : start + 17] for start in range(0, ids.shape[1] - 1, 16)]
        nats = sum(
            float(torch.nn.functional.cross_entropy(reference(w[:, :-1]).logits[0], w[0, 1:], reduction="sum"))
            for w in windows
        )
    for weights in (str(folder), checkpoint.url):
        scored = evaluate(weights, text=text, config=EvaluateConfig(precision="float32"))
        assert scored.tokens == ids.shape[1] - 1
        assert scored.cross_entropy == pytest.approx(nats / scored.tokens, rel=1e-4)
    assert evaluate(checkpoint.url, data=made.dataset).tokens > 0
    several = EvaluateConfig(precision="float32", nproc=2)
    assert evaluate(checkpoint.url, text=text, config=several).cross_entropy == pytest.approx(scored.cross_entropy)

    greedy = SampleConfig(temperature=0, max_new_tokens=6, precision="float32")
    prompt = "wir sind <user>"
    sample = generate(checkpoint.url, [prompt], greedy)[0]
    asked = torch.tensor([theirs(prompt)["input_ids"]])
    expected = reference.generate(asked, max_new_tokens=6, do_sample=False, pad_token_id=ours.end_of_text)
    assert sample.tokens == [i for i in expected[0, asked.shape[1] :].tolist() if i != ours.end_of_text]

    exported = export_hf(checkpoint.url, str(tmp_path / "exported"))
    for place in (exported, checkpoint.url):  # a checkpoint is a folder of transformers' as it stands
        out = AutoTokenizer.from_pretrained(place)
        assert out(text)["input_ids"] == theirs(text)["input_ids"]
        assert out.eos_token_id == ours.end_of_text
        if "Qwen" in case:
            said = out.apply_chat_template([{"content": "wir"}], tokenize=False)
            assert said == "<|im_start|>wir<|im_end|>"
        again_read = read_weights(place)
        assert get_tokenizer(again_read.tokenizer).sha256 == ours.sha256
        with torch.inference_mode():
            same = GPT2LMHeadModel.from_pretrained(place)(ids[:, :16]).logits
            assert torch.allclose(same, reference(ids[:, :16]).logits, atol=1e-6)


def test_what_a_tokenizer_is_called_is_pinned(tmp_path: Path) -> None:
    """Ids of datasets and checkpoints' configurations hold it."""
    ours, _ = both(tmp_path, "three tokens added to GPT-2's")
    assert ours.name == "bpe-ef9c30601a6b"


def test_rows_are_padding_only_where_no_token_has_them(tmp_path: Path) -> None:
    ours, _ = both(tmp_path, "three tokens added to GPT-2's")
    write_model(tmp_path, 50260)
    assert read_weights(str(tmp_path)).config.vocab_size == ours.vocab_size == 50260
    write_model(tmp_path, 50304)
    assert read_weights(str(tmp_path)).config.vocab_size == 50260
    write_model(tmp_path, 50260 + 267)  # as far as Qwen3's
    assert read_weights(str(tmp_path)).config.vocab_size == 50260
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"):
        (tmp_path / name).unlink(missing_ok=True)
    write_model(tmp_path, 50304)
    assert read_weights(str(tmp_path)).config.vocab_size == 50257  # nothing says that it is not GPT-2's


def test_a_long_text_is_cut_inside_no_added_token(tmp_path: Path) -> None:
    ours, theirs = both(tmp_path / "tokenizer", "marks and words added")
    (tmp_path / "corpus").mkdir()
    words = "<mark von zwei>" * (2 * CELL // 15)  # at every multiple of CELL the nearest space is inside a token
    (tmp_path / "corpus" / "a.txt").write_text(words)
    data = DataConfig(corpus=[Corpus(url=f"{tmp_path}/corpus")], tokenizer=str(tmp_path / "tokenizer"), validation=0)
    made = tokenize(data, str(tmp_path / "data"))
    assert made.tokens == len(theirs(words)["input_ids"]) == 2 * CELL // 15
    assert ours.encode(words) == theirs(words)["input_ids"]


def test_weights_and_data_of_two_tokenizers_do_not_meet(tmp_path: Path) -> None:
    """The same number of tokens, other ids."""
    ours, _ = both(tmp_path / "model", "another language")
    write_model(tmp_path / "model", ours.vocab_size)
    german(tmp_path / "other")
    ids = json.loads((tmp_path / "other" / "vocab.json").read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (tmp_path / "other" / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"{number}: {GERMAN}")
    data = DataConfig(corpus=[Corpus(url=f"{tmp_path}/corpus")], tokenizer=str(tmp_path / "other"))
    made = tokenize(data, str(tmp_path / "data"))
    with pytest.raises(UserError, match=f"made with the tokenizer bpe-.*use {ours.name}") as caught:
        evaluate(str(tmp_path / "model"), data=made.dataset)
    assert f"data.tokenizer={tmp_path}/model" in caught.value.hint


def test_a_tokenizer_that_changed_where_it_is_kept_is_named(tmp_path: Path) -> None:
    both(tmp_path / "model", "another language")
    write_model(tmp_path / "model", 500)
    checkpoint = import_weights(str(tmp_path / "model"), str(tmp_path / "imported"))
    place = Path(checkpoint.url) / "tokenizer.json"
    whole = json.loads(place.read_text())
    ids = whole["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    place.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"the tokenizer is bpe-\w+, not bpe-\w+, which this was made with"):
        generate(checkpoint.url, ["wir"])
    place.unlink()
    Path(checkpoint.url, "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer's file is missing"):
        generate(checkpoint.url, ["und"], SampleConfig(max_new_tokens=1))


def test_gpt2s_own_tokenizer_is_read_in_either_form(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    tokenizer = gpt2(tmp_path / "model")
    assert read_weights(str(tmp_path / "model")).tokenizer == "gpt2"
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "model" / name).unlink()
    tokenizer.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").exists()
    assert read_weights(str(tmp_path / "model")).tokenizer == "gpt2"
    export_hf(str(tmp_path / "model"), str(tmp_path / "out"))
    assert read_weights(str(tmp_path / "out")).tokenizer == "gpt2"
    assert not list(Path(import_weights(str(tmp_path / "out"), str(tmp_path / "in")).url).glob("tokenizer*"))
    assert get_tokenizer(str(tmp_path / "in" / "step-00000000")).name == "gpt2"  # its configuration names it


def test_what_is_no_place_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for reference in ("gpt-two", str(tmp_path), f"{tmp_path}/nowhere"):
        with pytest.raises(UserError) as caught:
            get_tokenizer(reference)
        assert "vocab.json" in caught.value.hint
        assert "\n" not in str(caught.value)


# ---- what cannot be represented is refused by name


def reordered(folder: Path) -> None:
    german(folder)
    lines = (folder / "merges.txt").read_text().split("\n")
    lines[5], lines[6] = lines[6], lines[5]
    (folder / "merges.txt").write_text("\n".join(lines))


def without_a_byte(folder: Path) -> None:
    german(folder)
    ids = json.loads((folder / "vocab.json").read_text())
    ids["zz"] = ids.pop("z")
    (folder / "vocab.json").write_text(json.dumps(ids))


def made_otherwise(folder: Path) -> None:
    """The last token is made of a pair that the merges before it never leave."""
    german(folder)
    lines = (folder / "merges.txt").read_text().rstrip("\n").split("\n")
    first, last = lines[1].replace(" ", ""), lines[-1].replace(" ", "")
    ids = json.loads((folder / "vocab.json").read_text())
    lines[-1] = f"{first[0]} {first[1]}q"
    ids[f"{first}q"], ids[f"{first[1]}q"] = ids.pop(last), 500
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(lines))


def changed(path: tuple[str, ...], value: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        as_whole_file(folder)
        whole = json.loads((folder / "tokenizer.json").read_text())
        place = whole
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / "tokenizer.json").write_text(json.dumps(whole))

    return write


def spaces_eaten(folder: Path) -> None:
    changed(("added_tokens",), [{"id": 0, "content": END_OF_TEXT}, {"id": 9, "content": "<mask>", "lstrip": True}])(
        folder
    )


def no_end(folder: Path) -> None:
    german(folder, ("<begin>",))


def damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ')


def no_merges(folder: Path) -> None:
    german(folder)
    (folder / "merges.txt").unlink()


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "merges in another order": (reordered, "not in the order of its merges"),
    "a byte without a token": (without_a_byte, "no token for the byte 0x7a"),
    "a token that is never reached": (made_otherwise, "of a pair that its bytes are never merged to"),
    "a space before the text": (changed(("pre_tokenizer", "add_prefix_space"), True), "splits text in another way"),
    "another way to split": (changed(("pre_tokenizer",), {"type": "Whitespace"}), "splits text in another way"),
    "an unknown pattern": (lambda folder: qwen(folder, r"\p{L}+|\P{L}+"), "splits text in another way"),
    "text is changed first": (changed(("normalizer",), {"type": "Lowercase"}), "changes or splits text"),
    "not BPE": (changed(("model", "type"), "WordPiece"), "of the kind WordPiece"),
    "dropout": (changed(("model", "dropout"), 0.1), "uses dropout"),
    "spaces eaten": (spaces_eaten, "looks for '<mask>' with lstrip"),
    "nothing ends a text": (no_end, "names no token that ends a text"),
    "damaged": (damaged, "tokenizer.json is not JSON"),
    "without merges": (no_merges, "has no merges"),
    "an id twice": (changed(("added_tokens",), [{"id": 70, "content": "<a>"}]), "to two tokens"),
    "two ids": (changed(("added_tokens",), [{"id": 3, "content": END_OF_TEXT}]), "two ids"),
    "no vocabulary": (changed(("model", "vocab"), [["a", 0.5]]), "no vocabulary of tokens"),
    "a merge of three": (changed(("model", "merges"), ["a b c"]), "which is no pair"),
}  # fmt: skip


def spoiled(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one of its values in place of another."""
    garbage = st.sampled_from([None, True, -1, 1 << 40, 0.5, "", "x y z", [], [None], {}, {"a": {}}, [[]]])
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 2)) == 0:
        return draw(garbage)
    key = draw(st.sampled_from(list(value if isinstance(value, dict) else range(len(value)))[:12]))
    other = copy.copy(value)
    other[key] = spoiled(draw, value[key])
    return other


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `transformers` writes of a tokenizer with added tokens, small."""
    folder = tmp_path_factory.mktemp("saved")
    with_marks_and_words(folder)
    names = ("tokenizer.json", "tokenizer_config.json")
    values = {name: json.loads((folder / name).read_text()) for name in names}
    return {**values, "special_tokens_map.json": {"eos_token": "x"}, "added_tokens.json": {}, "config.json": {"a": 1}}


@pytest.fixture(scope="module")
def written(saved: dict[str, Any]) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in saved.items()}


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_files_with_anything_in_them_are_read_or_refused(
    data: st.DataObject, saved: dict[str, Any], written: dict[str, bytes]
) -> None:
    name = data.draw(st.sampled_from(sorted(saved)))
    contents = tuple({**written, name: json.dumps(spoiled(data.draw, saved[name])).encode()}.items())
    with suppress(UserError):  # anything else that is raised fails the test
        read_files(contents, "here")


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("how", ["folder", "file"])
def test_what_cannot_be_represented_is_refused_by_name(tmp_path: Path, case: str, how: str) -> None:
    spoil, message = REFUSED[case]
    write_model(tmp_path, 500)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        read_weights(str(tmp_path / ("model.safetensors" if how == "file" else "")))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
