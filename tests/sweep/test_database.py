"""A database of sweeps that several processes open for the first time at once, or whose maker is killed."""

from __future__ import annotations

import time
from pathlib import Path

from gptpipe.sweep.database import open_study
from tests.fixtures.databases import open_at_once, opening_sweeps


def test_processes_that_open_a_new_file_at_once_all_work_in_it(tmp_path: Path) -> None:
    open_at_once(f"sqlite:///{tmp_path / 'sweeps.db'}")
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps.db"]


def test_a_process_that_is_killed_while_it_makes_the_tables_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / "sweeps.db"
    process = opening_sweeps(f"sqlite:///{file}", "one")
    while sum(path.stat().st_size for path in tmp_path.glob(".tmp-*")) < 4096 * 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not file.exists()
    open_study("one", f"sqlite:///{file}")
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps.db"]
