"""metrics.jsonl: what is damaged in it is left out, and ends nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gptpipe.launch.metrics import MetricsFile, MetricsFollower, keep_until, read_line
from gptpipe.tracking.results import read_metrics


def content_of(folder: Path) -> bytes:
    file = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, 9):
        file.write(step, 64 * step, {"train/loss": 10 - step / 3, "validation/loss": float("nan")})
    return file.contents()


def test_lines_up_to_a_step_are_kept_as_they_are(tmp_path: Path) -> None:
    lines = content_of(tmp_path).splitlines(keepends=True)
    assert keep_until(b"".join(lines) + b'{"step": 9, "to', 5) == b"".join(lines[:5])


def test_whatever_byte_has_changed_the_other_lines_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, draw = tmp_path / "metrics.jsonl", random.Random(1)
    content = content_of(tmp_path)
    whole = [json.loads(line) for line in content.splitlines()]
    told = 0
    for place in range(len(content)):
        for value in {content[place] ^ 1 << draw.randrange(8), draw.randrange(256)} - {content[place]}:
            file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            caplog.clear()
            lines = read_metrics(str(tmp_path))
            assert len([line for line in lines if line in whole]) >= len(whole) - 2  # two where a line's end has gone
            assert all(isinstance(line["step"], int) and "tokens" in line for line in lines)
            followed = [line for line in MetricsFollower(file).poll() if "tokens" in line]
            assert followed in (lines, lines[:-1])  # the last may have no end
            told += str(file) in caplog.text
    assert told > len(content) / 3


@pytest.mark.parametrize(
    "line", [b"", b"7", b"[]", b"{}", b"\xff\xfe{", b'{"step": "1", "tokens": 1}', b'{"tokens": 1}', b"[" * 100_000]
)
def test_what_is_no_line_is_none(line: bytes) -> None:
    assert read_line(line) is None
    assert read_line(b'{"step": 1, "tokens": 64, "train/loss": 2.5}') == {"step": 1, "tokens": 64, "train/loss": 2.5}
