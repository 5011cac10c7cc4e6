"""A kept result is what was written, or none: whatever byte of it has changed."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from gptpipe import storage


@dataclass(frozen=True)
class Result:
    loss: float
    name: str
    rows: list[tuple[str, int]] = field(default_factory=list)


KIND = TypeAdapter(Result)
KEPT = Result(10.125, "Größe", [("a", 1), ("b", 2)])


def test_it_is_read_as_it_was_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = str(tmp_path / "kept.json")
    assert storage.read_result(place, KIND) is None
    storage.write_result(place, asdict(KEPT))
    assert storage.read_result(place, KIND) == KEPT
    assert not caplog.text


def test_a_byte_that_has_changed_never_gives_another_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, draw = tmp_path / "kept.json", random.Random(1)
    storage.write_result(str(file), asdict(KEPT))
    content = file.read_bytes()
    for place in range(len(content)):
        for value in {content[place] ^ 1 << draw.randrange(8), draw.randrange(256)} - {content[place]}:
            file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            caplog.clear()
            found = storage.read_result(str(file), KIND)
            assert found in (None, KEPT)  # white space between two values says nothing
            assert found or str(file) in caplog.text
    for length in range(len(content) - 2):  # the last two are a bracket and the end of the line
        file.write_bytes(content[:length])
        assert storage.read_result(str(file), KIND) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b'{"sha256": null}', b"\xff\xfe", b"[" * 100_000, bytes(50)])
def test_what_is_none_is_told_and_none(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "kept.json"
    file.write_bytes(content)
    assert storage.read_result(str(file), KIND) is None
    assert str(file) in caplog.text


def test_one_of_another_version_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = str(tmp_path / "kept.json")
    storage.write_result(place, {"loss": 1.0})
    assert storage.read_result(place, KIND) is None
    assert "another version" in caplog.text
