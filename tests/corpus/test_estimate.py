"""How much text there is, before and after it is tokenized."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptpipe.config import DataConfig
from gptpipe.corpus.build import tokenize
from gptpipe.corpus.estimate import amount_of
from gptpipe.errors import UserError

WORDS = [
    "the",
    "house",
    "by",
    "the",
    "river",
    "was",
    "old",
    "and",
    "nobody",
    "had",
    "lived",
    "in",
    "it",
    "since",
    "1999",
    "(def",
    "return",
    "import",
    "self)",
]


def texts(count: int, longest: int) -> list[str]:
    draw = random.Random(4)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, longest))) for _ in range(count)]


def write(folder: Path, kind: str) -> None:
    """About half a megabyte of documents as files, lines or rows, packed or not."""
    folder.mkdir()
    if kind == "text":
        for number, text in enumerate(texts(300, 600)):
            (folder / f"{number}.txt").write_text(text)
    elif kind == "parquet":
        for number in range(3):
            table = pa.table({"text": texts(400, 300), "other": list(range(400))})
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=50)
    else:
        lines = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts(1500, 300)))
        if kind == "jsonl":
            (folder / "a.jsonl").write_text(lines)
        else:
            (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.mark.parametrize("kind", ["text", "jsonl", "gzip", "parquet"])
def test_a_sample_tells_how_much_there_is_and_the_dataset_exactly(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "texts", kind)
    config, out = DataConfig(corpus=[str(tmp_path / "texts")], validation=0.1), str(tmp_path / "out")
    before = amount_of(config, out)
    made = tokenize(config, out)
    after = amount_of(config, out)
    assert before.dataset is None
    assert before.tokens == pytest.approx(made.tokens, rel=0.15)
    assert before.documents == pytest.approx(made.documents, rel=0.15)
    assert after.dataset is not None
    assert (after.dataset.id, after.tokens, after.documents) == (made.id, made.tokens, made.documents)
    assert after.train_tokens == made.splits["train"]
    assert (before.files, before.bytes) == (after.files, after.bytes)


def test_a_file_that_changed_makes_it_an_estimate_again(tmp_path: Path) -> None:
    write(tmp_path / "texts", "text")
    config, out = DataConfig(corpus=[str(tmp_path / "texts")]), str(tmp_path / "out")
    tokenize(config, out)
    (tmp_path / "texts" / "0.txt").write_text("other text")
    assert amount_of(config, out).dataset is None


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    """Whoever tokenizes says what is wrong with them."""
    write(tmp_path / "texts", "jsonl")
    (tmp_path / "texts" / "b.jsonl").write_text("{no json\n" * 10)
    (tmp_path / "texts" / "c.parquet").write_bytes(b"PAR1 no parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "texts" / "empty.parquet")
    pq.write_table(pa.table({"other": [1, 2]}), tmp_path / "texts" / "other.parquet")
    assert amount_of(DataConfig(corpus=[str(tmp_path / "texts")]), str(tmp_path / "out")).tokens > 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_that_is_not_utf_8_is_refused_as_by_whoever_tokenizes_it(tmp_path: Path, packed: bool) -> None:
    content = random.Random(1).randbytes(200_000)
    name = "a.txt.gz" if packed else "a.txt"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    config, out = DataConfig(corpus=[str(tmp_path / name)]), str(tmp_path / "out")
    said = []
    for ask in (amount_of, tokenize):
        with pytest.raises(UserError, match=r"a\.txt.*is not UTF-8") as caught:
            ask(config, out)
        said.append(str(caught.value))
    assert said[0] == said[1]
    for errors in ("replace", "skip"):
        amount_of(config.model_copy(update={"errors": errors}), out)


@pytest.mark.parametrize("shift", range(4))
def test_a_sample_that_ends_within_a_character_is_no_fault(tmp_path: Path, shift: int) -> None:
    (tmp_path / "a.txt").write_text("x" * shift + "\N{EARTH GLOBE EUROPE-AFRICA}" * 20_000)
    assert amount_of(DataConfig(corpus=[str(tmp_path / "a.txt")]), str(tmp_path / "out")).tokens > 0
