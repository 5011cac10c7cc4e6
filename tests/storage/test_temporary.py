"""Temporary folders go with whoever made them: at the end, or at the next one's beginning where that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gptpipe import storage

KILLED = """
import os, signal
from gptpipe import storage
with storage.passing_folder() as folder:
    (folder / "page.html").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_one_uses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert len(list(tmp_path.glob(".*/page.html"))) == 1
    (tmp_path / "somebody-elses").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with storage.passing_folder() as first, storage.passing_folder() as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second, tmp_path / "somebody-elses"])
        assert first.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses"]
