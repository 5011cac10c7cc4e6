"""What is kept for validation: by the text's hash, or the end of the only document; later texts move none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptpipe.corpus.shards import split_by_position
from gptpipe.corpus.split import split_of
from gptpipe.dataset.dataset import open_dataset
from tests.fixtures.corpora import GPT2, build, digest_of, documents_of, rows_of, some_text, write


def test_one_document_is_split_by_position_as_in_the_lecture(lecture_text: Path, tmp_path: Path) -> None:
    result = build(tmp_path, lecture_text, validation=0.1)
    text = lecture_text.read_text("utf-8")
    cut = int(0.9 * len(text))
    splits = {row["split"]: row["tokens"] for row in rows_of(result.dataset)}
    assert splits["train"] == GPT2.encode_ordinary(text[:cut])
    assert splits["validation"] == GPT2.encode_ordinary(text[cut:])
    assert result.documents == 1


@given(st.text(min_size=1, max_size=300))
def test_a_split_by_position_loses_nothing_and_trains_on_the_first_nine_tenths(text: str) -> None:
    pieces = {split: (start, piece) for split, start, piece in split_by_position(text, 0.1)}
    cut = int(0.9 * len(text))
    assert pieces.get("train", (0, ""))[1] == text[:cut]
    assert pieces.get("validation", (0, ""))[1] == text[cut:]
    assert pieces["validation"][0] == len(text[:cut].encode())


def test_without_validation_one_document_is_all_training(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", {"a.txt": some_text(1)})
    result = build(tmp_path / "out", folder, validation=0)
    assert [row["split"] for row in rows_of(result.dataset)] == ["train"]
    assert documents_of(result.dataset) == {"a.txt#0": GPT2.encode_ordinary(some_text(1))}


def splits_of(dataset: str) -> dict[str, set[str]]:
    """The sides that each text is found on."""
    found: dict[str, set[str]] = {}
    for row in rows_of(dataset):
        found.setdefault(GPT2.decode(row["tokens"]), set()).add(row["split"])
    return found


def test_copies_of_a_text_are_on_one_side_and_later_texts_move_none(tmp_path: Path) -> None:
    texts = [some_text(i, 40) for i in range(400)]
    folder = write(tmp_path / "corpus", {f"{i}.txt": text for i, text in enumerate(texts)})
    lines = "".join(json.dumps({"text": text}) + "\n" for text in reversed(texts))
    write(folder, {"copies.jsonl": lines, "copies-again.jsonl": lines})
    before = splits_of(build(tmp_path / "out", folder).dataset)
    assert set(before) == set(texts)
    assert all(len(sides) == 1 for sides in before.values())
    assert 0.12 < sum(sides == {"validation"} for sides in before.values()) / 400 < 0.28
    write(folder, {f"new-{i}.txt": some_text(1000 + i) for i in range(50)})
    (folder / "copies.jsonl").unlink()
    after = splits_of(build(tmp_path / "out", folder).dataset)
    assert {text: after[text] for text in texts} == before


def test_a_larger_share_of_validation_only_adds_to_it() -> None:
    texts = [some_text(i, 30) for i in range(300)]
    small = {text for text in texts if split_of(digest_of(text), 0.1) == "validation"}
    large = {text for text in texts if split_of(digest_of(text), 0.3) == "validation"}
    assert small < large
    assert {split_of(digest_of(text), 0.0) for text in texts} == {"train"}


@pytest.mark.parametrize("kind", ["files", "lines"])
@pytest.mark.parametrize("share", [1e-9, 0.1, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 8])
def test_few_documents_are_on_both_sides_whatever_the_share(
    tmp_path: Path, kind: str, share: float, count: int
) -> None:
    for seed in range(2):
        texts = [f"note {seed} {i}: some words" for i in range(count)]
        if kind == "files":
            files = {f"{i}.txt": text for i, text in enumerate(texts)}
        else:
            files = {"all.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)}
        result = build(tmp_path / "out", write(tmp_path / f"corpus-{seed}", files), validation=share)
        assert set(result.splits) == {"train", "validation"}
        assert set(splits_of(result.dataset)) == set(texts)
        again = build(tmp_path / "out", tmp_path / f"corpus-{seed}", validation=share)
        assert again.already_done


def test_a_text_that_was_trained_on_is_never_validated_on_as_few_documents_grow(tmp_path: Path) -> None:
    folder, trained, said = tmp_path / "corpus", set[str](), set[str]()
    for number in range(60):
        write(folder, {f"{number}.txt": f"note {number}: some words"})
        if number < 1:
            continue
        sides = splits_of(build(tmp_path / "out", folder).dataset)
        validated = {text for text, found in sides.items() if found == {"validation"}}
        assert validated
        assert not validated & trained
        trained |= set(sides) - validated
        said.add("below" if "validation_below" in open_dataset(str(tmp_path / "out")).options else "hash")
    assert said == {"below", "hash"}  # both rules were in use


def test_what_was_done_for_few_documents_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = write(tmp_path / "corpus", {"a.txt": "one", "b.txt": "two"})
    build(tmp_path / "out", folder, validation=1e-9)
    assert "would leave one split empty: 1 document for training, 1 document for validation" in caplog.text
